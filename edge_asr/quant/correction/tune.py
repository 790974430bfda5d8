"""End-to-end tuning: train what is left of a quantized model that is no code.

EfficientQAT's second phase (Chen et al. 2024, arXiv:2407.11062, section 3.3) trains the step sizes
of all weights end to end and leaves codes and zero points as they are. Here norms and biases are
trained with them, towards the float model's distribution over next tokens (Kullback and Leibler's
divergence) along its own transcripts instead of given texts, as NeUQI's authors distil (Lin et al.
2025, arXiv:2505.17595). It costs no bit, but is more than calibration: a record says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_asr.calibration.capture import Batch
from edge_asr.errors import UserError
from edge_asr.quant.context import ModelContext
from edge_asr.quant.grid import rescaled
from edge_asr.quant.layers import quantized_layers
from edge_asr.quant.model_training import (
    NOT_ASKED,
    ModelLearnable,
    chosen_clips,
    few_at_once,
    model_inputs,
    train_model,
)
from edge_asr.quant.reconstruction import Length, Trained, thread_independent_norms
from edge_asr.quant.stages import Correction, corrections
from edge_asr.quant.weight import QuantizedWeight
from edge_asr.settings import Rate, ScheduleName

# Biases of zeros move in steps as those of this root mean square would.
LEAST_SIZE = 0.01


class TunedModel(ModelLearnable):
    """A quantized model with other scales, norms and biases.

    What is trained are relative changes, so that one rate serves them all.

    Attributes:
        scales: By how much of itself every scale changes, [rows, groups] a layer.
        vectors: The same of every other parameter with one dimension, in units of its root mean
            square.
    """

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        self._layers: dict[str, QuantizedWeight] = {}
        self._shapes: dict[str, torch.Size] = {}
        for name, layer in quantized_layers(context.model).items():
            if layer.quantized is not None:
                self._layers[name] = layer.quantized.to(layer.weight.device)
                self._shapes[name] = layer.weight.shape
        self._vectors = {
            name: value.detach()
            for name, value in context.model.named_parameters()
            if value.ndim == 1
        }
        self.scales = nn.ParameterList(
            [torch.zeros_like(one.parameters.scale) for one in self._layers.values()]
        )
        self.vectors = nn.ParameterList([torch.zeros_like(one) for one in self._vectors.values()])

    def weights(self) -> dict[str, QuantizedWeight]:
        """The weights on their new scales, by layer."""
        return {
            name: replace(
                one,
                parameters=rescaled(one.parameters, one.parameters.scale * (1 + change), one.grid),
            )
            for (name, one), change in zip(self._layers.items(), self.scales, strict=True)
        }

    def moved_vectors(self) -> dict[str, Tensor]:
        """Norms and biases by path."""
        return {
            name: value + change * value.square().mean().sqrt().clamp(min=LEAST_SIZE)
            for (name, value), change in zip(self._vectors.items(), self.vectors, strict=True)
        }

    def tensors(self) -> dict[str, Tensor]:
        weights = {
            f"{name}.weight": one.dequantize().reshape(self._shapes[name])
            for name, one in self.weights().items()
        }
        return weights | self.moved_vectors()

    @torch.no_grad()
    def put_in_place(self, context: ModelContext) -> None:
        """Make the model what this stands for."""
        layers, weights = quantized_layers(context.model), self.weights()
        for path, value in self.moved_vectors().items():
            context.model.get_parameter(path).copy_(value)
        for name, weight in weights.items():
            layers[name].store(weight)


class Distillation:
    """The divergence from what the float model expects next: a `TokenLoss`.

    The float model's states before its head are kept, not its distributions, which are as wide as
    the vocabulary.
    """

    def __init__(self, context: ModelContext) -> None:
        if context.reference is None:
            raise ValueError("there is no float model to learn from")
        self._head: nn.Module = context.reference.get_output_embeddings()
        self._states: list[Tensor] = []
        read: list[Tensor] = []
        device = context.model.device

        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            read.append(args[0])

        with torch.no_grad(), self._head.register_forward_pre_hook(see):
            for batch in context.batches:
                every = torch.arange(len(batch.token_mask))
                for clips in few_at_once(batch, every):
                    context.reference(**model_inputs(batch, clips, device), use_cache=False)
                self._states.append(torch.cat(read))
                read.clear()

    def __call__(self, index: int, clips: Tensor, logits: Tensor, following: Tensor) -> Tensor:
        asked = following != NOT_ASKED
        with torch.no_grad():
            wanted = self._head(self._states[index][clips][asked]).log_softmax(-1)
        given = logits[asked].log_softmax(-1)
        return functional.kl_div(given, wanted, reduction="sum", log_target=True)


@corrections.register("tune")
@dataclass(frozen=True)
class Tune(Trained, Correction):
    """Train scales, norms and biases towards the float model on its own transcripts.

    A quarter of the clips is not trained on: the iterate is kept that is nearest to the float model
    on those, or the start.

    Attributes:
        learning_rate: Step size of Adam at first, as a share of what is trained; it falls along a
            cosine.
        max_grad_norm: Largest norm of all gradients together; longer ones are shortened to it.
    """

    trains_model: ClassVar[bool] = True

    # The paper's 4096 samples, 32 at once.
    lengths: ClassVar[Mapping[ScheduleName, Length]] = {
        "short": Length(60, clips=4),
        "paper": Length(128, clips=32),
    }

    learning_rate: Rate = 3e-4
    max_grad_norm: Rate = 1.0

    @property
    def evaluations(self) -> int:
        return 5

    def check_clips(self, batches: Sequence[Batch]) -> None:
        if not chosen_clips(batches, apart=True)[1]:
            raise UserError(
                "method/correction=tune: needs two clips at least in which the float model hears "
                "something, one to train on and one apart; set calibration.clips to more"
            )

    def repair_model(self, context: ModelContext) -> None:
        tuned = TunedModel(context).to(context.model.device)
        optimizer = torch.optim.Adam(tuned.parameters(), lr=self.learning_rate)
        norms = [value for value in context.model.parameters() if value.ndim == 1]
        with thread_independent_norms(context.model, norms):
            found = train_model(
                context, tuned, Distillation(context), optimizer, self.training,
                max_grad_norm=self.max_grad_norm, apart=True,
            )  # fmt: skip
        tuned.put_in_place(context)
        context.reconstructions.append(found)
        if found.loss_after < found.loss_before:
            context.warnings.append(
                "tune: scales, norms and biases are trained on the float model's transcripts of "
                "the calibration clips, which is more than calibration"
            )
        else:
            context.warnings.append(
                f"tune: {found.iterations} steps did not lower the divergence of "
                f"{found.loss_before:.3g} on clips apart; nothing was changed"
            )
