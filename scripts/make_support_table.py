"""Write docs/support.md: which method serves which schemes and families, from the registries.

python scripts/make_support_table.py [--out docs/support.md]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_asr.cli.compose import compose_settings
from edge_asr.config import BASE_RECIPE, CONF
from edge_asr.errors import UserError
from edge_asr.models.families.base import families
from edge_asr.models.files import EMBEDDED, find_files
from edge_asr.models.loading import read_config
from edge_asr.models.tensors import TensorKind
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.scheme import Scheme
from edge_asr.quant.stages import STAGES
from edge_asr.settings import show_value
from edge_asr.store.files import write_text_atomically

# A column's heading, and the rules that ask for it.
SCHEMES: dict[str, list[dict[str, Any]]] = {
    "a channel": [{"group_size": None}],
    "groups": [{"group_size": 32}],
    "symmetric": [{"symmetric": True}],
    "2 bits": [{"bits": 2}],
    "8 bits": [{"bits": 8}],
    "A8 a token": [{"act_bits": 8}],
    "A4 a token": [{"act_bits": 4}],
    "A8 static": [{"act_bits": 8, "act_granularity": "tensor", "act_range": "extreme"}],
}
KINDS: dict[TensorKind, str] = {
    "linear": "quantized, 2 to 8 bits, and its input where a rule says so",
    "convolution": "quantized where a rule says so, and its input",
    "embedding": "quantized where a rule says so, and the head that is it",
    "head": "as the embedding, or by rules of its own; its input where a rule says so",
    "kv_cache": "stays float; refused",
    "attention": "stays float; refused",
}
INTRODUCTION = """\
# What serves what

Made by `python scripts/make_support_table.py` from the registries; do not edit.

Answers are for every family ({families}). *Clips*: it looks
at calibration clips. *Learns*: it trains every block, or the rotations, for minutes to hours.
"""


def refusal(recipe: Recipe, scheme: Scheme, model: str) -> str | None:
    """Why the recipe does not serve the scheme on an embedded model, if it does not."""
    config, architecture = read_config(find_files(model))
    slots = {slot.name: slot for slot in architecture.slots(config)}
    try:
        recipe.check(scheme)
        for name, one in scheme.resolve(slots.values()).items():
            recipe.constrain(one, slots[name])
    except UserError as error:
        return str(error)
    return None


def method_rows(reasons: list[str]) -> list[tuple[str, ...]]:
    """One row a recipe; why it refuses a scheme is added to `reasons`."""
    rows = []
    for path in sorted((CONF / "method").glob("*.yaml")):
        if path.stem in (BASE_RECIPE, "float"):
            continue
        method = compose_settings(f"method={path.stem}").method
        recipe = Recipe.build(method.stages)
        answers = []
        for rules in SCHEMES.values():
            scheme = Scheme.build(method.rules, rules, {})
            found = [refusal(recipe, scheme, model) for model in EMBEDDED]
            why = next((one for one in found if one), None)
            reasons += [f"`{path.stem}`: {why}."] if why else []
            answers.append(f"no ({len(reasons)})" if why else "yes")
        parts = [_shown(stage, part) for stage, part in recipe.identity.items()]
        source = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        rows.append(
            (
                f"`{path.stem}`",
                *(name if name != "none" else "–" for name in parts),
                "yes" if recipe.needs_calibration(()) else "–",
                "yes" if recipe.trains else "–",
                *answers,
                source.rpartition(": ")[2].removesuffix("."),
            )
        )
    return rows


def _shown(stage: str, part: Mapping[str, Any]) -> str:
    """The part's name, with the settings that the recipe changes."""
    usual = STAGES[stage].identity(STAGES[stage].build({"name": part["name"]}))
    changed = [f"{name}={show_value(part[name])}" for name in usual if part[name] != usual[name]]
    return " ".join([str(part["name"]), *changed])


def page() -> str:
    """The whole document."""
    headings = ("method", *STAGES, "clips", "learns", *SCHEMES, "source")
    reasons: list[str] = []
    rows = method_rows(reasons)
    named = ", ".join(f"`{name}`" for name in families)
    kinds = [(f"`{kind}`", said) for kind, said in KINDS.items()]
    lines = [INTRODUCTION.format(families=named), "## Methods", "", *_table(headings, rows), ""]
    lines += [*(f"{number}. {why}" for number, why in enumerate(reasons, 1)), ""]
    lines += ["## Kinds of tensors", "", *_table(("kind", "what happens"), kinds), ""]
    return "\n".join(lines)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    shown = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(row)} |" for row in shown]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/support.md"))
    write_text_atomically(parser.parse_args(arguments).out, page())


if __name__ == "__main__":
    main()
