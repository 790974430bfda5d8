"""Which parts cannot work together, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edge_asr.errors import UserError
from edge_asr.quant.range.double_quantization import DoubleQuantization

if TYPE_CHECKING:
    from edge_asr.quant.recipe import Recipe


def refuse_senseless(parts: Recipe, names: Mapping[str, str]) -> None:
    """Raises UserError, with the reason, for parts that cannot work together.

    `names` are the names of `parts`, by stage.
    """
    chosen = {stage: f"method/{stage}={name}" for stage, name in names.items()}
    if (names["rounding"] == "none") != (names["range"] == "none"):
        raise UserError(
            f"{chosen['rounding']} with {chosen['range']}: either both are none (method=float) or "
            "neither"
        )
    if names["rounding"] == "none":
        for stage, name in names.items():
            if name != "none":
                raise UserError(
                    f"{chosen[stage]} with method/rounding=none: nothing is quantized, so it would "
                    "change nothing; choose another method"
                )
    _refuse_for_learned_transforms(parts, names, chosen)
    if parts.range.learned and getattr(parts.rounding, "static_groups", True) is False:
        raise UserError(
            f"{chosen['range']} with method.rounding.static_groups=false: learned ranges belong to "
            "the original weights and cannot be fitted again; use static_groups=true"
        )
    if parts.rounding.observation.paired:
        _refuse_for_compensation(parts, names, chosen)
    _refuse_to_move_double_quantized(parts, names, chosen)
    learned = {
        "rounding": parts.rounding.learned,
        "range": parts.range.learned,
        "transform": parts.transform.learned,
    }
    trained = [stage for stage, yes in learned.items() if yes]
    if not trained:
        return
    before_rounding = [stage for stage in trained if stage != "rounding"]
    if names["outliers"] != "none" and before_rounding:
        raise UserError(
            f"{chosen['outliers']} with {chosen[before_rounding[0]]}: outliers are chosen when "
            "weights are rounded, after that stage was trained without them; use a range and a "
            "transform that are not learned"
        )
    if parts.correction.by_layer:
        raise UserError(
            f"{chosen['correction']} with {chosen[trained[0]]}: training already makes up for the "
            "mean error of the blocks before, and correcting every layer alone would undo it; "
            "use method/correction=none"
        )
    if names["transform"] == "cle":
        raise UserError(
            f"{chosen['transform']} with {chosen[trained[0]]}: the values of a cross-attention are "
            "rescaled ahead of the block that reads them, so they have no float outputs to learn "
            "from; use method/transform=awq, smooth or none"
        )


def _refuse_to_move_double_quantized(
    parts: Recipe, names: Mapping[str, str], chosen: Mapping[str, str]
) -> None:
    if not isinstance(parts.range, DoubleQuantization):
        return
    others = "method/range=minmax, mse or hessian"
    if parts.rounding.moves_scales:
        mover, instead = chosen["rounding"], f"method/rounding=adaround or gptq, or {others}"
    elif names["correction"] == "tune":
        mover, instead = chosen["correction"], f"method/correction=none, or {others}"
    else:
        return
    raise UserError(
        f"{chosen['range']} with {mover}: it trains the scales, which then leave the grid they "
        f"were quantized to; use {instead}"
    )


def _refuse_for_learned_transforms(
    parts: Recipe, names: Mapping[str, str], chosen: Mapping[str, str]
) -> None:
    if not parts.transform.learned:
        return
    if names["range"] not in ("minmax", "lwc"):
        raise UserError(
            f"{chosen['transform']} with {chosen['range']}: a learned rewrite changes the weights "
            "at every step, so their range must follow it; use method/range=lwc or minmax"
        )
    if parts.range.learned and parts.transform.training != parts.range.training:
        raise UserError(
            f"{chosen['transform']} with {chosen['range']}: they are trained together; "
            "give method.transform and method.range the same iterations, clips, patience, seed and "
            "aug_loss"
        )


def _refuse_for_compensation(
    parts: Recipe, names: Mapping[str, str], chosen: Mapping[str, str]
) -> None:
    compensation = f"method.rounding.compensation={getattr(parts.rounding, 'compensation', '')}"
    if parts.correction.by_layer:
        raise UserError(
            f"{chosen['correction']} with {compensation}: correcting what is lost on the inputs of "
            "the quantized model would undo what was made up for; use method/correction=none"
        )
    if names["transform"] == "cle":
        raise UserError(
            f"{chosen['transform']} with {compensation}: the values of a cross-attention are "
            "rescaled ahead of the block that reads them, so their float inputs cannot be "
            "compared; use method/transform=awq, smooth or none"
        )
    if names["outliers"] != "none" and (
        not parts.rounding.updates_outliers or compensation.endswith("qronos")
    ):
        raise UserError(
            f"{chosen['outliers']} with {compensation} and {chosen['rounding']}: what stays float "
            "could not make up for anything; use method/rounding=gptq with compensation=qep or "
            "gptaq, or method/outliers=none"
        )
