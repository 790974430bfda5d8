"""Tokens that a generation_config.json names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_asr.errors import UserError


def check_token(name: str, token: object, vocabulary: int) -> None:
    """Raises UserError where `token`, the field `name`, is none of the model's."""
    if type(token) is not int or not 0 <= token < vocabulary:
        raise UserError(
            f"generation_config.json: {name} {token!r:.60} is no token of the model, which has "
            f"{vocabulary}; restore the published file"
        )


def token_problem(plain: Mapping[str, Any]) -> str | None:
    """A token that is no number in the file itself, on which the library fails: half a sentence."""
    for name, value in plain.items():
        # Several tokens may end a text; all others are one.
        several = isinstance(value, list) and name == "eos_token_id"
        tokens = value if several else [value]
        if name.endswith("_token_id") and any(type(one) not in (int, type(None)) for one in tokens):
            return f"{name} {value!r:.60} is no token"
    return None


def check_tokens(generation: Any, fields: Sequence[str], vocabulary: int) -> None:
    """Raises UserError for a token that the model does not have, in `fields` or any other."""
    ends = generation.eos_token_id
    ends = ends if isinstance(ends, list) and ends else [ends]
    named = [("eos_token_id", one) for one in ends]
    named += [(name, getattr(generation, name)) for name in fields]
    for name in ("bos_token_id", "pad_token_id"):
        if getattr(generation, name, None) is not None:
            named.append((name, getattr(generation, name)))
    for name, token in named:
        check_token(name, token, vocabulary)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        tokens = getattr(generation, name, None)
        if tokens is None:
            continue
        # Numbers beyond the vocabulary suppress nothing, and -1 stands for none.
        if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
            raise UserError(
                f"generation_config.json: {name} {tokens!r:.60} is no list of tokens; "
                "restore the published file"
            )
        if name == "suppress_tokens" and set(ends) <= set(tokens):
            raise UserError(
                f"generation_config.json: {name} holds every token that ends a text; "
                "restore the published file"
            )
