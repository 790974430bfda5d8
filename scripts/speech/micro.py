"""The two micro architectures: tokenizers, configurations, and encoders on short windows."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional
from transformers import (
    GenerationConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from speech import augment

WINDOW_S = 5
HOP = 160
MAX_TOKENS = 64
VOCABULARY = 500
WHISPER_SPECIALS = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>",
    "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip


def train_byte_bpe(texts: Iterable[str], specials: Iterable[str] = ()) -> Tokenizer:
    """A byte-level BPE of about 500 tokens over `texts`; every word starts with its space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" " + text for text in texts), trainer)
    return tokenizer


class MicroModel(ABC):
    """What training needs of either family; subclasses know the architecture."""

    @abstractmethod
    def __init__(self, texts: Iterable[str]) -> None:
        """A fresh model with a tokenizer trained on `texts`."""

    name: str
    model: Any
    start_tokens: list[int]
    end_token: int

    @abstractmethod
    def prepare(
        self, waves: torch.Tensor, lengths: torch.Tensor, full_window: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Model inputs and the number of valid encoder frames of every clip."""

    @abstractmethod
    def encode(
        self, inputs: torch.Tensor, frames: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        """Encoder states [batch, time, hidden]; masked as SpecAugment asks with a generator."""

    @abstractmethod
    def decode(
        self, states: torch.Tensor, frames: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """Teacher-forced logits [batch, tokens, vocabulary]."""

    @abstractmethod
    def token_ids(self, text: str) -> list[int]:
        """The transcript's tokens, prompt and end token apart."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write an ordinary Hugging Face folder."""


class WhisperMicro(MicroModel):
    """Whisper's layout at d_model 144: 80 mels, 6 heads of 24, a window of 5 seconds."""

    name = "whisper-micro"

    def __init__(self, texts: Iterable[str]) -> None:
        bpe = train_byte_bpe(texts)
        vocabulary = bpe.get_vocab()
        merges = [tuple(pair) for pair in _merges(bpe)]
        self.tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges)
        self.tokenizer.add_special_tokens({"additional_special_tokens": list(WHISPER_SPECIALS)})
        ids: dict[str, Any] = {
            name: self.tokenizer.convert_tokens_to_ids(name) for name in WHISPER_SPECIALS
        }
        self.end_token = ids["<|endoftext|>"]
        self.start_tokens = [ids["<|startoftranscript|>"], ids["<|notimestamps|>"]]
        self.no_timestamps = ids["<|notimestamps|>"]
        self.features = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S)
        self.mel = torch.tensor(self.features.mel_filters, dtype=torch.float32)
        self.model = WhisperForConditionalGeneration(
            WhisperConfig(
                vocab_size=len(self.tokenizer), num_mel_bins=80, d_model=144,
                encoder_layers=4, decoder_layers=2,
                encoder_attention_heads=6, decoder_attention_heads=6,
                encoder_ffn_dim=576, decoder_ffn_dim=576,
                max_source_positions=WINDOW_S * 50, max_target_positions=MAX_TOKENS,
                dropout=0.0, activation_dropout=0.0, attention_dropout=0.0,
                pad_token_id=self.end_token, bos_token_id=self.end_token,
                eos_token_id=self.end_token, decoder_start_token_id=self.start_tokens[0],
                suppress_tokens=None, begin_suppress_tokens=None,
            )
        )  # fmt: skip

    def prepare(
        self, waves: torch.Tensor, lengths: torch.Tensor, full_window: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        window = WINDOW_S * 16_000
        waves = waves[:, :window]
        lengths = lengths.clamp(max=window)
        samples = window if full_window else -(-waves.shape[1] // (2 * HOP)) * 2 * HOP
        waves = functional.pad(waves, (0, samples - waves.shape[1]))
        return self._log_mel(waves), lengths // (2 * HOP)

    def _log_mel(self, waves: torch.Tensor) -> torch.Tensor:
        """WhisperFeatureExtractor's log-mel for a whole batch (its fixture in training speed)."""
        spectrum = torch.stft(waves, 400, HOP, window=torch.hann_window(400), return_complex=True)
        power = spectrum[..., :-1].abs() ** 2
        log = (self.mel.T @ power).clamp(min=1e-10).log10()
        log = torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0)
        return (log + 4.0) / 4.0

    def encode(
        self, inputs: torch.Tensor, frames: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        if generator is not None:
            inputs = augment.mask_spectrogram(inputs, 2 * frames, generator)
        encoder = self.model.model.encoder
        states = functional.gelu(encoder.conv1(inputs))
        states = functional.gelu(encoder.conv2(states)).transpose(1, 2)
        states = states + encoder.embed_positions.weight[: states.shape[1]]
        for layer in encoder.layers:
            states = layer(states, None)
        return encoder.layer_norm(states)

    def decode(
        self, states: torch.Tensor, frames: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        del frames  # Whisper's decoder attends to padding too
        hidden = self.model.model.decoder(
            input_ids=tokens, encoder_hidden_states=states, use_cache=False
        ).last_hidden_state
        return self.model.proj_out(hidden)

    def token_ids(self, text: str) -> list[int]:
        return self.tokenizer(" " + text, add_special_tokens=False).input_ids

    def save(self, folder: Path) -> None:
        ids = self.tokenizer.convert_tokens_to_ids
        self.model.generation_config = GenerationConfig(
            decoder_start_token_id=self.start_tokens[0], bos_token_id=self.end_token,
            eos_token_id=self.end_token, pad_token_id=self.end_token,
            forced_decoder_ids=[[1, self.no_timestamps]], is_multilingual=False,
            no_timestamps_token_id=self.no_timestamps, return_timestamps=False,
            prev_sot_token_id=ids("<|startofprev|>"), max_initial_timestamp_index=0,
            max_length=MAX_TOKENS,
        )  # fmt: skip
        self.model.save_pretrained(folder)
        WhisperProcessor(self.features, self.tokenizer).save_pretrained(folder)


class MoonshineMicro(MicroModel):
    """Moonshine's layout at width 144: raw audio, 4 heads of 36, gated decoder MLP."""

    name = "moonshine-micro"

    def __init__(self, texts: Iterable[str]) -> None:
        bpe = train_byte_bpe(texts, specials=("<unk>", "<s>", "</s>"))
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
            pad_token="</s>", clean_up_tokenization_spaces=False,
        )  # fmt: skip
        self.start_tokens, self.end_token = [1], 2
        self.features = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
        self.model = MoonshineForConditionalGeneration(
            MoonshineConfig(
                vocab_size=len(self.tokenizer), hidden_size=144, intermediate_size=576,
                encoder_num_hidden_layers=4, decoder_num_hidden_layers=2,
                encoder_num_attention_heads=4, decoder_num_attention_heads=4,
                max_position_embeddings=256, pad_token_id=2,
            )
        )  # fmt: skip

    def prepare(
        self, waves: torch.Tensor, lengths: torch.Tensor, full_window: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        del full_window  # Moonshine has no window
        frames = ((((lengths - 127) // 64 + 1) - 7) // 3 + 1 - 3) // 2 + 1
        return waves, frames.clamp(min=1)

    def encode(
        self, inputs: torch.Tensor, frames: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        encoder = self.model.model.encoder
        states = torch.tanh(encoder.conv1(inputs[:, None]))
        states = functional.gelu(encoder.conv2(encoder.groupnorm(states)))
        states = functional.gelu(encoder.conv3(states)).transpose(1, 2)
        if generator is not None:
            states = augment.mask_frames(states, frames, spans=2, width=6, generator=generator)
        mask = self._mask(states.shape[1], frames)
        positions = encoder.rotary_emb(states, torch.arange(states.shape[1])[None])
        for layer in encoder.layers:
            states = layer(states, attention_mask=mask, position_embeddings=positions)
        return encoder.layer_norm(states)

    @staticmethod
    def _mask(time: int, frames: torch.Tensor) -> torch.Tensor:
        """Additive attention mask [batch, 1, 1, time] that hides padded frames."""
        hidden = torch.arange(time)[None] >= frames[:, None]
        return hidden[:, None, None].float() * -1e9

    def decode(
        self, states: torch.Tensor, frames: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        valid = (torch.arange(states.shape[1])[None] < frames[:, None]).long()
        hidden = self.model.model.decoder(
            input_ids=tokens, encoder_hidden_states=states,
            encoder_attention_mask=valid, use_cache=False,
        ).last_hidden_state  # fmt: skip
        return self.model.proj_out(hidden)

    def token_ids(self, text: str) -> list[int]:
        return self.tokenizer(" " + text, add_special_tokens=False).input_ids

    def save(self, folder: Path) -> None:
        self.model.generation_config = GenerationConfig(
            decoder_start_token_id=1,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            max_length=MAX_TOKENS,
        )
        self.model.save_pretrained(folder)
        Wav2Vec2Processor(self.features, self.tokenizer).save_pretrained(folder)


MODELS: dict[str, type[MicroModel]] = {
    model.name: model for model in (WhisperMicro, MoonshineMicro)
}


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [pair if isinstance(pair, list) else pair.split(" ") for pair in merges]


class CharacterHead(nn.Module):
    """The throw-away CTC head: 26 letters, space and blank on every encoder frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 28)

    def loss(self, states: torch.Tensor, frames: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """Mean CTC loss a character (Graves et al. 2006) of `states` [batch, time, width]."""
        labels = [
            [27 if symbol == " " else ord(symbol) - ord("a") + 1 for symbol in text]
            for text in texts
        ]
        scores = functional.log_softmax(self.linear(states), -1).transpose(0, 1)
        return functional.ctc_loss(
            scores,
            torch.tensor([label for row in labels for label in row]),
            frames.clamp(max=states.shape[1]),
            torch.tensor([len(row) for row in labels]),
            zero_infinity=True,
        )
