"""What a rotated model runs instead of norms, and at the ends of its residual streams."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edge_asr.quant.layers import RuntimeOp, StoredModule, modules

ENTRY = "stream_entry"


@modules.register("matrix_product")
class MatrixProduct(RuntimeOp):
    """Multiply every row [..., n] by a dense matrix [n, n]; n² MACs a row."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix.detach().float().clone())

    @property
    def macs_per_row(self) -> int:
        return self.matrix.numel()

    @property
    def stored_bits(self) -> float:
        return 16.0 * self.matrix.numel()

    def round_stored(self) -> None:
        self.matrix.copy_(self.matrix.half())

    def stored(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix.half()}

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.matrix.to(inputs.dtype)


@modules.register("stream_entry")
class StreamEntry(RuntimeOp):
    """Bring states [..., n] into the rotated stream: centre every row, then rotate it.

    Lives in the first block of a stack and runs before it (`attach`). The block's inputs are
    thereby the plain states: what is captured before its hooks can be run through it again.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.rotation: nn.Module = nn.Identity()

    @property
    def macs_per_row(self) -> int:
        return self.width + getattr(self.rotation, "macs_per_row", 0)

    @property
    def stored_bits(self) -> float:
        return float(getattr(self.rotation, "stored_bits", 0))

    def description(self) -> dict[str, Any]:
        return {"width": self.width}

    def attach(self, model: nn.Module, path: str) -> None:
        """Make it part of the block above it, whose input has `width` channels."""
        block = model.get_submodule(path.rpartition(".")[0])
        if ENTRY not in block._modules:
            block.register_forward_pre_hook(_enter_stream, with_kwargs=True)
        super().attach(model, path)

    def rotate(self, rotation: RuntimeOp) -> None:
        """Set the rotation that follows the centring. Raises ValueError the second time."""
        if not isinstance(self.rotation, nn.Identity):
            raise ValueError("the stream is rotated already")
        self.rotation = rotation

    def forward(self, states: Tensor) -> Tensor:
        rotated: Tensor = self.rotation(states - states.mean(-1, keepdim=True))
        return rotated


def _enter_stream(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook of a block that has an entry: the call's hidden states enter the stream."""
    entry = block.get_submodule(ENTRY)
    if args:
        return (entry(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": entry(kwargs["hidden_states"])}


@modules.register("stream_exit")
class StreamExit(StoredModule):
    """The last norm of a stack behind the way out of the rotated stream.

    The states arrive centred, and LayerNorm does not mind: norm and head stay as they were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rotation: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()

    def attach(self, model: nn.Module, path: str) -> None:
        """Take the place of the norm at `path`, or of another exit in front of it."""
        found = model.get_submodule(path)
        self.norm = found.norm if isinstance(found, StreamExit) else found
        super().attach(model, path)

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = self.norm(self.rotation(states))
        return output


@modules.register("folded_norm")
class FoldedNorm(nn.RMSNorm, StoredModule):
    """What is left of a LayerNorm whose scale, bias and centring are folded away."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps, elementwise_affine=False)

    def description(self) -> dict[str, Any]:
        return {"width": self.normalized_shape[0], "eps": self.eps}
