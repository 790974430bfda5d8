"""How to decode, as far as the user decides it. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_asr.errors import UserError
from edge_asr.models.languages import language_code, nearest_language
from edge_asr.settings import Checked

Task = Literal["transcribe", "translate"]
TooLong = Literal["cut", "error"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class StackDtypes:
    """What each stack computes in while it transcribes; runtime ops and input quantizers always
    compute in float32."""

    encoder: Dtype = "float32"
    decoder: Dtype = "float32"


@dataclass(frozen=True)
class Decoding(Checked):
    """What is decoded, and what may be written.

    Attributes:
        language: Of the speech, a code or English name such as de or german; null: the
            checkpoint's own, else English.
        task: Write in that language, or translate to English; null: the checkpoint's own, else
            transcribe.
        suppression: Never write the tokens that the checkpoint suppresses (library), or write
            whatever the model finds (none), as the open ASR leaderboard does since 2026-04-28.
        too_long: What becomes of a clip that is longer than the model's window: cut, and counted,
            or an error.
    """

    language: str | None = None
    task: Task | None = None
    suppression: Literal["library", "none"] = "library"
    too_long: TooLong = "cut"

    @classmethod
    def option(cls) -> str:
        return "decode"

    def __post_init__(self) -> None:
        """Of one language there is one code, whatever it was called."""
        super().__post_init__()
        if self.language is None:
            return
        code = language_code(self.language)
        if code is None:
            raise UserError(
                f"decode.language={self.language}: is no known language; "
                f"{nearest_language(self.language)}"
            )
        object.__setattr__(self, "language", code)


AS_PUBLISHED = Decoding()
IN_FLOAT32 = StackDtypes()
