"""What runtimes of exported files share: clip by clip, the encoder and then a search."""

from __future__ import annotations

import tempfile
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edge_asr.errors import UserError
from edge_asr.export.base import exporters, require_packages
from edge_asr.models.decoding import IN_FLOAT32, StackDtypes
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.base import DecodedBatch, Runtime
from edge_asr.runtimes.greedy_search import FoundTokens, search_tokens
from edge_asr.runtimes.torch_greedy import clip_to_window, token_limit, transcripts_of
from edge_asr.store.phases import PhaseSeconds


class FileRuntime(Runtime):
    """A model as the file that its target exports it to, on the processor; features, prompt and
    suppressed tokens are our own.

    Args:
        checkpoint: The model, float or what a target of the runtime holds; only its features and
            texts are asked for where it is exported already.
        dtypes: float32, for no runtime takes others.
        exported: Where it was exported to; None: it is exported first.

    Attributes:
        name: Its own.
        types: What it computes in.
        packages, extra: What has to be installed to run a file, see `Exporter`.
    """

    simulates: ClassVar[bool] = False
    name: ClassVar[str]
    types: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    extra: ClassVar[str]

    @classmethod
    def require(cls) -> None:
        """Raises UserError where what runs a file is not installed."""
        require_packages(f"runtime={cls.name}", cls.packages, cls.extra)

    @classmethod
    def check(cls, dtypes: StackDtypes, device: str) -> None:
        cls.require()
        import edge_asr.export.formats  # noqa: F401  registers exporters, and loads slowly

        for target in cls.targets or ():
            require_packages(f"runtime={cls.name}", exporters[target].packages, cls.extra)
        if dtypes != IN_FLOAT32 or device != "cpu":
            raise UserError(
                f"runtime={cls.name}: computes in {cls.types} on the processor; leave out device=, "
                "encoder.dtype= and decoder.dtype="
            )

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtypes: StackDtypes = IN_FLOAT32,
        exported: Path | None = None,
    ) -> None:
        if exported is None:
            self.check(dtypes, checkpoint.model.device.type)
        self.checkpoint = checkpoint
        self._tokens = search_tokens(checkpoint.model, checkpoint.architecture)
        with _exported_folder(self.name, checkpoint, exported) as folder:
            self.load(folder)

    @property
    def vocabulary(self) -> int:
        """Tokens that the model knows."""
        return int(self.checkpoint.model.config.vocab_size)

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Load what was exported to `folder`, which may be gone afterwards.

        Runtimes load some damaged files without a word; `read_export` finds those.
        """

    @abstractmethod
    def encode(self, features: np.ndarray) -> Any:
        """What the search needs of a clip with `features` [1, ...]."""

    @abstractmethod
    def search(self, memory: Any, limit: int) -> Any:
        """What is found greedily, at most `limit` tokens."""

    def found(self, result: Any, limit: int) -> FoundTokens:
        """What `search` gave as tokens; no part of the decoder's seconds."""
        del limit
        tokens: FoundTokens = result
        return tokens

    def window(self, samples: np.ndarray) -> np.ndarray:
        return clip_to_window(self.checkpoint, samples)

    def token_limit(self, samples: int, max_new_tokens: int | None = None) -> int:
        return token_limit(self.checkpoint, samples, max_new_tokens)

    def prepare(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The features of every clip."""
        architecture, extractor = self.checkpoint.architecture, self.checkpoint.feature_extractor
        features = (architecture.model_inputs(extractor, [clip]) for clip in clips)
        return [next(iter(one.values())).contiguous().numpy() for one in features]

    def decode(self, prepared: Sequence[np.ndarray], limits: Sequence[int]) -> DecodedBatch:
        results, encoder, decoder = [], 0.0, 0.0
        for features, limit in zip(prepared, limits, strict=True):
            began = time.perf_counter()
            memory = self.encode(features)
            encoded = time.perf_counter()
            results.append(self.search(memory, limit))
            encoder, decoder = encoder + encoded - began, decoder + time.perf_counter() - encoded
        began = time.perf_counter()
        found = [self.found(one, limit) for one, limit in zip(results, limits, strict=True)]
        texts = transcripts_of(self.checkpoint.tokenizer, found)
        seconds = PhaseSeconds(encoder=encoder, decoder=decoder, text=time.perf_counter() - began)
        return DecodedBatch(tuple(texts), seconds)


@contextmanager
def _exported_folder(runtime: str, checkpoint: Checkpoint, exported: Path | None) -> Iterator[Path]:
    """`exported`, or where None a folder for the time being that the model is exported to."""
    if exported is not None:
        yield exported
        return
    from edge_asr.export.write import write_for  # exporters load slowly

    with tempfile.TemporaryDirectory() as made:
        write_for(runtime, checkpoint, Path(made))
        yield Path(made)
