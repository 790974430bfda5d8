"""`--help`: every setting of what is chosen, with its sentence, range and default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_asr.cli.catalogue import MISSING, Choice, Setting, choices, class_settings
from edge_asr.cli.compose import NEEDED, SHARED, Composer
from edge_asr.cli.overrides import parse
from edge_asr.config import Settings, StackSettings
from edge_asr.models.decoding import Decoding
from edge_asr.settings import show_value

INTRODUCTION = """\
Compress a Whisper or Moonshine checkpoint and measure what it costs and gains.

  python -m edge_asr.run method=gptq bits=3
  python -m edge_asr.run -m method=rtn,gptq bits=4,3,2 model=whisper_micro,moonshine_micro
  python -m edge_asr.run model=custom model.path=FOLDER data=manifest data.path=FILE.jsonl

Every option is written name=value; with -m, several values separated by commas make a run each.
Further words: -m (sweep), --cfg job (show the configuration), --config-dir FOLDER (your own
conf/), --version, --hydra-help (Hydra's own).

This lists the settings of every part; method=gptq --help only those that gptq has."""
ENDING = "Reports over all records: python -m edge_asr.report --help"
WIDEST = 100


def print_help(composer: Composer, words: Sequence[str]) -> None:
    """Print what can be chosen and set.

    Where `words` choose a recipe or parts, the settings of those parts alone; else of all.

    Raises UserError for a word that does not fit.
    """
    chosen = any(one.key_or_group.startswith("method") for one in parse(words))
    config = composer.config(words)
    console = Console(highlight=False)
    console = Console(
        width=min(console.width, WIDEST) if console.is_terminal else WIDEST, highlight=False
    )
    console.print(INTRODUCTION + "\n", markup=False)
    _print(
        console,
        "Choices",
        ((group, ", ".join(composer.options(group))) for group in composer.groups()),
    )
    for title, rows in _sections(config, everything=not chosen):
        _print(console, title, rows)
    console.print(ENDING, markup=False)


def _print(console: Console, title: str, rows: Iterator[tuple[str, str]]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2), pad_edge=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for left, right in rows:
        table.add_row(Text(left), Text(right))
    console.print(Text(title))
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.print(line.rstrip(), markup=False, soft_wrap=True)
    console.print()


def _sections(
    config: DictConfig, *, everything: bool
) -> Iterator[tuple[str, Iterator[tuple[str, str]]]]:
    plain: Any = OmegaConf.to_container(config)
    nested = (*NEEDED, "decode", "encoder", "decoder")
    run = [one for one in class_settings(Settings) if one.name not in nested]
    yield "The run", (_row(one, "", plain.get(one.name)) for one in run)
    yield "Decoding", _rows(class_settings(Decoding), "decode", plain["decode"])
    stacks = class_settings(StackSettings)
    yield (
        "One stack alone",
        (
            _row(one, f"{stack}.", plain[stack][one.name])
            for stack in ("encoder", "decoder")
            for one in stacks
        ),
    )
    for group, kind in SHARED.items():
        shared = [one for one in class_settings(kind) if one.name not in ("options", "name")]
        yield f"{group}={plain[group].get('name')}", _rows(shared, group, plain[group])
    for choice in choices():
        own = _node(plain, choice)
        if choice.settings and (everything or own is not None):
            prefix = choice.group.replace("/", ".")
            yield (
                f"{choice.group}={choice.name}: {choice.sentence}",
                _rows(choice.settings, prefix, own or choice.node),
            )


def _node(plain: Mapping[str, Any], choice: Choice) -> Mapping[str, Any] | None:
    """The values of `choice` in a configuration, None where another is chosen."""
    node: Any = plain
    for name in choice.group.split("/"):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) and node.get("name") == choice.name else None


def _rows(
    settings: Sequence[Setting], prefix: str, values: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    return (_row(one, f"{prefix}.", values.get(one.name, one.default)) for one in settings)


def _row(one: Setting, prefix: str, value: Any) -> tuple[str, str]:
    shown = "..." if value == MISSING else show_value(value)
    # Details of a setting stand in its class; a line of help says what it is.
    sentence = one.sentence.partition(". ")[0].removesuffix(".")
    return f"{prefix}{one.name}={shown}", f"{sentence} ({one.allowed})" if sentence else one.allowed
