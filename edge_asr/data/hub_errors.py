"""What the hub's and the `datasets` library's many errors mean to a user, each in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as HTTPError  # type: ignore[attr-defined]

from edge_asr.errors import UserError, first_line

# A broken or refused connection: nothing that would be wrong with the data.
CONNECTION_ERRORS = (HfHubHTTPError, HTTPError, ConnectionError, TimeoutError)


@contextmanager
def explained(path: str, revision: str | None = None) -> Iterator[None]:
    """Turn what goes wrong with the data set at `path` into a UserError of one line."""
    try:
        yield
    except (
        OSError, ValueError, RuntimeError, EntryNotFoundError, HTTPError, pa.ArrowException,
    ) as error:  # fmt: skip
        raise UserError(f"data set {path!r} {_reason(error, path, revision)}") from error
    except Exception as error:
        # `datasets` has a base class of its own, whose import takes seconds.
        if not type(error).__module__.startswith("datasets."):
            raise
        raise UserError(f"data set {path!r} {_reason(error, path, revision)}") from error


def _reason(error: BaseException, path: str, revision: str | None) -> str:
    """What is wrong and what helps, behind the name of the data set."""
    chain = list(_causes(error))
    if any(isinstance(one, GatedRepoError) for one in chain):
        return _gated(path)
    if any(isinstance(one, RevisionNotFoundError) for one in chain):
        return (
            f"has no revision {revision!r}; give a branch, a tag or a whole commit of "
            f"https://huggingface.co/datasets/{path}/commits/main"
        )
    if any(isinstance(one, HFValidationError) for one in chain):
        return "is no folder here, and no data set on the hub is called so; give owner/name"
    refused = next((one for one in chain if isinstance(one, HfHubHTTPError)), None)
    if isinstance(refused, RepositoryNotFoundError):
        token = "the token in use may not read it" if _has_token() else "HF_TOKEN is not set"
        return (
            "is no folder here and not on the hub, or is private: check the name, or put a token "
            f"that may read it into the variable HF_TOKEN ({token})"
        )
    if refused is not None and refused.response.status_code == 401:
        return (
            "was refused: the hub does not know the token in use; put a valid one of "
            "https://huggingface.co/settings/tokens into the variable HF_TOKEN, or unset it"
        )
    broken = [
        one for one in chain if isinstance(one, (*CONNECTION_ERRORS, LocalEntryNotFoundError))
    ]
    if broken:
        if constants.HF_HUB_OFFLINE:
            return (
                "is not in the cache as a whole, and HF_HUB_OFFLINE forbids to fetch it; unset "
                "HF_HUB_OFFLINE, or give a local copy as its path"
            )
        return (
            f"cannot be fetched from the hub ({_said(broken[-1])}); run again with a network (what "
            "is finished is kept), or give a local copy as its path"
        )
    if any("scripts are no longer supported" in str(one) for one in chain):
        return (
            "is a program (a loading script), which is never run; try the hub's own Parquet copy "
            "of it, revision refs/convert/parquet"
        )
    if isinstance(error, FileNotFoundError):  # no data files, or none that match
        return f"has nothing that can be read: {_said(error)}"
    return f"cannot be read: {_said(error.__cause__ or error)}"


def _gated(path: str) -> str:
    page = f"https://huggingface.co/datasets/{path}"
    if _has_token():
        return f"is gated: accept its conditions at {page} with the account of the token in use"
    return (
        f"is gated: accept its conditions at {page}, then put a token of "
        "https://huggingface.co/settings/tokens into the variable HF_TOKEN"
    )


def _has_token() -> bool:
    return get_token() is not None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those it came from, the last first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _said(error: BaseException) -> str:
    return first_line(error).rstrip(".")
