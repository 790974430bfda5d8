"""The architecture map: what every other part may know about a model's structure.

A map yields *blocks* in forward order and, for each block, *sites*: the layers that read
one and the same activation, with the norm or layer that feeds them. Names such as
`encoder_attn` occur in the two maps (`whisper.py`, `moonshine.py`) and nowhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from edge_asr.audio import SAMPLE_RATE
from edge_asr.errors import UserError
from edge_asr.models.decoding import Decoding, Task
from edge_asr.models.families.generation import as_warning, check_tokens, not_done
from edge_asr.models.families.sites import Block, ResidualStream, Site, StemAxis
from edge_asr.models.languages import ENGLISH
from edge_asr.models.tensors import AttentionShape, Slot, Stack
from edge_asr.registry import Registry

families: Registry[Architecture] = Registry("family")


class Architecture(ABC):
    """One model family. Instances are stateless; every method takes the model or its config.

    `default_tokens_per_second` is the family's published cap on generated tokens a second of
    audio, or None. `tied_logit_channels` is how many neighbouring channels of a self-attention's
    queries and keys must share a scale: 2 where rotary positions turn them in pairs.
    `hears_padding` says that clips are padded to the model's window, and that the encoder attends
    to that as to speech.

    Fields of the configuration: `layer_fields` and `head_fields` (encoder, decoder), `room_field`
    (decoder positions), `activation_fields`, and `sizes`, each with the tensor and the axis that
    have that size. `feature_extractor` is its class.
    """

    family: str
    version: int = 1  # raised when a change of the map changes numbers
    default_tokens_per_second: float | None = None
    tied_logit_channels: int = 1
    hears_padding: bool = False
    encoder_module: str = "model.encoder"
    decoder_module: str = "model.decoder"
    embedding: str = "model.decoder.embed_tokens"
    head: str = "proj_out"
    encoder_norm: str = "model.encoder.layer_norm"
    decoder_norm: str = "model.decoder.layer_norm"
    layer_fields: tuple[str, str]
    head_fields: tuple[str, str]
    room_field: str
    activation_fields: tuple[str, ...]
    sizes: Mapping[str, tuple[str, int]]
    feature_extractor: str

    @abstractmethod
    def encoder_block(self, index: int) -> Block:
        """Encoder block number `index`."""

    @abstractmethod
    def decoder_block(self, index: int) -> Block:
        """Decoder block number `index`, without its cross-attention keys and values."""

    def depth(self, config: Any) -> tuple[int, int]:
        """Number of encoder and of decoder blocks."""
        encoder, decoder = self.layer_fields
        return getattr(config, encoder), getattr(config, decoder)

    @abstractmethod
    def stem(self) -> tuple[StemAxis, ...]:
        """The convolutions before the first encoder block, in forward order."""

    @abstractmethod
    def positions(self, config: Any, samples: int) -> dict[str, int]:
        """Positions computed on every stem axis and on `frame` for a clip of `samples`."""

    @abstractmethod
    def valid_frames(self, config: Any, samples: int) -> int:
        """Encoder frames that hold audio, not padding, for a clip of `samples` samples."""

    @abstractmethod
    def window_samples(self, config: Any, feature_extractor: Any) -> int | None:
        """Longest clip in samples, or None where any length is accepted."""

    @abstractmethod
    def model_inputs(
        self, feature_extractor: Any, clips: Sequence[np.ndarray]
    ) -> dict[str, torch.Tensor]:
        """Batch float32 mono 16 kHz clips into the keyword inputs of the encoder."""

    @abstractmethod
    def feature_settings(self, feature_extractor: Any) -> dict[str, Any]:
        """All that another program needs to make the features of one clip, by name.

        `kind` says how: `log_mel` as Whisper's, or `samples`. Arrays are NumPy's.
        """

    def memory_mask(
        self, encoder_inputs: Mapping[str, torch.Tensor], frames: int
    ) -> dict[str, torch.Tensor]:
        """Decoder keyword arguments that hide padding among `frames` encoder frames, as the
        model itself derives them from its encoder's inputs; none by default."""
        del encoder_inputs, frames
        return {}

    def on_counted_rows(self, block: Block, module: nn.Module) -> nn.Module | None:
        """`module`, which runs `block`, cut to the rows that count: see `counted_rows`.

        It takes what the block takes and `weights` [batch, positions], and gives what the block
        would give for those rows. None, the default, where that would save little.
        """
        del block, module
        return None

    def settle_generation(
        self, model: PreTrainedModel, tokenizer: Any, decoding: Decoding
    ) -> list[str]:
        """Make the model's generation config complete: start token, language, task.

        Returns a sentence for what is set there and not done. Raises UserError where the decoder's
        prompt cannot be known, or `decoding` wants what the model cannot do.
        """
        del tokenizer
        generation: Any = model.generation_config
        if getattr(generation, "decoder_start_token_id", None) is None:
            generation.decoder_start_token_id = getattr(
                model.config, "decoder_start_token_id", None
            )
        if getattr(generation, "decoder_start_token_id", None) is None:
            raise UserError(
                "generation_config.json has no decoder_start_token_id, and config.json neither; "
                "restore the published files"
            )
        check_tokens(generation, self.token_fields, int(model.config.vocab_size))
        if decoding.suppression == "none":
            generation.suppress_tokens = generation.begin_suppress_tokens = None
        return as_warning(not_done(generation))

    def language(self, model: PreTrainedModel) -> str:
        """Code of the language that is decoded, once generation is settled."""
        named = getattr(model.generation_config, "language", None) or ENGLISH
        return str(named).removeprefix("<|").removesuffix("|>")

    def task(self, model: PreTrainedModel) -> Task:
        """What is done with it, once generation is settled."""
        return getattr(model.generation_config, "task", None) or "transcribe"

    def tokens_per_second(self, own: float | None, language: str | None) -> float | None:
        """The cap on generated tokens a second that was set, or else the usual one."""
        return self.usual_tokens_per_second(language) if own is None else own

    def usual_tokens_per_second(self, language: str | None) -> float | None:
        """The published cap on generated tokens a second of speech in a language, or None."""
        del language
        return self.default_tokens_per_second

    def own_config_problem(self, config: Any) -> str | None:
        """What the family's own fields are wrong in, beside what every family has: half a
        sentence that names the field."""
        del config
        return None

    def features(self, config: Any) -> dict[str, Any]:
        """What the feature extractor must be for the model to hear what it was trained on, by
        attribute; a foreign or edited file changes one."""
        del config
        return {
            "sampling_rate": SAMPLE_RATE,
            "padding_side": "right",
            "padding_value": 0.0,
            "dither": 0.0,  # noise
        }

    # Texts of token 0, of the prompt's first and of the end's: a foreign tokenizer has others.
    first_token: str
    start_token: str
    end_token: str
    # Fields of the generation config that must be a token.
    token_fields: tuple[str, ...] = ("decoder_start_token_id",)

    def foreign_token(self, model: PreTrainedModel, tokenizer: Any) -> tuple[int, str, str] | None:
        """An id that `tokenizer` gives to another token than the family's do:
        the id, its token there, and the one it should be."""
        for token, text in self.known_tokens(model):
            found = tokenizer.convert_ids_to_tokens(token)
            if found != text:
                return token, str(found), text
        return None

    def known_tokens(self, model: PreTrainedModel) -> list[tuple[int, str]]:
        """Tokens of which the family knows the text."""
        generation: Any = model.generation_config
        return [
            (0, self.first_token),
            (int(generation.decoder_start_token_id), self.start_token),
            (min(end_tokens(model)), self.end_token),
        ]

    @abstractmethod
    def prompt(self, model: PreTrainedModel) -> tuple[int, ...]:
        """Decoder tokens that precede the transcript. Raises UserError if they are incomplete."""

    def is_tied(self, model: nn.Module) -> bool:
        """Whether the head is the embedding: one tensor."""
        head = model.get_submodule(self.head)
        return head.weight is model.get_submodule(self.embedding).weight

    def leave_out_head_padding(self, model: PreTrainedModel) -> None:
        """Have `model` multiply no zeros that fill its heads up for the sake of a GPU's kernels."""
        del model

    def heads(self, config: Any) -> tuple[int, int]:
        """Attention heads of the encoder and of the decoder."""
        encoder, decoder = self.head_fields
        return getattr(config, encoder), getattr(config, decoder)

    @abstractmethod
    def width(self, config: Any) -> int:
        """Channels of the residual streams."""

    def padded_head_dim(self, config: Any, head_dim: int) -> int:
        """Values per head that the attention products really multiply; by default all and only
        the head's own."""
        del config
        return head_dim

    def attention(self, config: Any) -> tuple[AttentionShape, ...]:
        """All attentions of the model with heads and head width."""
        encoder_heads, decoder_heads = self.heads(config)
        width = self.width(config)

        def record(
            block: Block, stack: Stack, kind: Literal["self", "cross"], heads: int
        ) -> AttentionShape:
            return AttentionShape(
                name=f"{block.module}.{kind}",
                stack=stack,
                kind=kind,
                heads=heads,
                head_dim=width // heads,
                padded_head_dim=self.padded_head_dim(config, width // heads),
            )

        kinds: tuple[Literal["self", "cross"], ...] = ("self", "cross")
        return (
            *(
                record(block, "encoder", "self", encoder_heads)
                for block in self.encoder_blocks(config)
            ),
            *(
                record(block, "decoder", kind, decoder_heads)
                for block in self.decoder_blocks(config)
                for kind in kinds
            ),
        )

    @abstractmethod
    def residual_streams(self, config: Any) -> tuple[ResidualStream, ...]:
        """The encoder's and the decoder's residual stream."""

    def token_limit(
        self, config: Any, prompt_tokens: int, samples: int, tokens_per_second: float | None
    ) -> int:
        """Most tokens a clip may generate, the end token included.

        The model's own room, or `int(samples x rate / 16000 + 2)` where the published model
        prescribes a rate (Moonshine's 6.5 tokens a second) and that is less.
        """
        room = int(self.decoder_room(config)) - prompt_tokens
        if tokens_per_second is None:
            return room
        return min(room, int(samples * tokens_per_second / SAMPLE_RATE + 2))

    def decoder_room(self, config: Any) -> int:
        """Decoder positions the model has."""
        return int(getattr(config, self.room_field))

    @abstractmethod
    def cross_layers(self, index: int) -> tuple[str, str]:
        """Key and value layer of decoder block `index`, which read the encoder's output."""

    def memory_block(self, config: Any) -> Block:
        """The keys and values of every decoder block's cross-attention: one shared input."""
        layers = [
            name for index in range(self.depth(config)[1]) for name in self.cross_layers(index)
        ]
        keys = tuple(self.cross_layers(index)[0] for index in range(self.depth(config)[1]))
        site = Site(
            "cross_kv",
            "decoder",
            tuple(layers),
            self.encoder_norm,
            "frame",
            logit_layers=keys,
            shift_invariant_layers=keys,
        )
        return Block(self.encoder_norm, "decoder", (site,))

    def encoder_blocks(self, config: Any) -> tuple[Block, ...]:
        return tuple(self.encoder_block(index) for index in range(self.depth(config)[0]))

    def decoder_blocks(self, config: Any) -> tuple[Block, ...]:
        return tuple(self.decoder_block(index) for index in range(self.depth(config)[1]))

    def blocks(self, config: Any) -> Iterator[Block]:
        """All blocks in forward order; the cross-attention memory stands between the stacks."""
        yield from self.encoder_blocks(config)
        yield self.memory_block(config)
        yield from self.decoder_blocks(config)

    def slots(self, config: Any) -> tuple[Slot, ...]:
        """Every tensor that a scheme can give a format, Linear layers in forward order first."""
        linear = [
            Slot(name, site.stack, site.role, "linear")
            for block in self.blocks(config)
            for site in block.sites
            for name in site.layers
        ]
        attentions = self.attention(config)
        return (
            *linear,
            *(Slot(part.layer, "encoder", "conv", "convolution") for part in self.stem()),
            Slot(self.embedding, "decoder", "embedding", "embedding"),
            Slot(self.head, "decoder", "head", "head"),
            *(Slot(one.name, one.stack, None, "attention") for one in attentions),
            *(
                Slot(one.name, one.stack, None, "kv_cache")
                for one in attentions
                if one.stack == "decoder"
            ),
        )

    def verify(self, model: nn.Module, config: Any) -> None:
        """Check the map against the model.

        Raises:
            UserError: when a Linear inside a block belongs to no site or to two, or when the
                map names a module that the model lacks.
        """
        modules = dict(model.named_modules())
        seen: dict[str, str] = {}
        for block in self.blocks(config):
            for site in block.sites:
                for name in (*site.layers, *([site.source] if site.source else [])):
                    if name not in modules:
                        raise UserError(
                            f"architecture map {self.family!r} names {name!r}, "
                            "which this model does not have; is the checkpoint of another family?"
                        )
                for name in site.layers:
                    if name in seen:
                        raise UserError(
                            f"architecture map {self.family!r}: layer {name!r} belongs to two "
                            f"sites, {seen[name]!r} and {site.role!r}"
                        )
                    seen[name] = site.role
        roots = tuple(f"{block.module}." for block in self.blocks(config))
        for name, module in modules.items():
            if isinstance(module, nn.Linear) and name.startswith(roots) and name not in seen:
                raise UserError(
                    f"architecture map {self.family!r}: layer {name!r} belongs to no site; "
                    "the map must be extended before this model can be quantized"
                )


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """The tokens that end a transcript. Raises UserError if generation_config.json has none."""
    end = getattr(model.generation_config, "eos_token_id", None)
    if end is None:
        raise UserError("generation_config.json has no eos_token_id; restore the published file")
    return frozenset([end] if isinstance(end, int) else end)
