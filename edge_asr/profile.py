"""Where the seconds and the memory of a run go: `python -m edge_asr.profile method=gptq bits=4`.

Takes what `python -m edge_asr.run` takes for one run, makes that run or finds it, and shows what
its record says of steps, phases and blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from edge_asr.cli.main import exit_code
from edge_asr.report.console import open_console
from edge_asr.store.files import show_size

if TYPE_CHECKING:
    from edge_asr.experiments.ptq import Outcome
    from edge_asr.store.record import BlockSection, Stage


def steps_table(stages: tuple[Stage, ...]) -> Table:
    """Seconds of every step and the largest resident memory while it was made."""
    table = Table("step", *_right("seconds", "peak memory"), "", box=None)
    for stage in stages:
        peak = "-" if stage.peak_memory_bytes is None else show_size(stage.peak_memory_bytes)
        stored = "from the store" if stage.stored else ""
        table.add_row(*map(Text, (stage.name, f"{stage.seconds:.1f}", peak, stored)))
    return table


def phases_table(title: str, phases: Mapping[str, float]) -> Table:
    """Seconds of every phase that took some and its share, the longest first."""
    table = Table(title, *_right("seconds", "%"), box=None)
    whole = sum(phases.values())
    for name, seconds in sorted(phases.items(), key=lambda one: -one[1]):
        if seconds > whole / 1000:
            table.add_row(*map(Text, (name, f"{seconds:.1f}", f"{100 * seconds / whole:.0f}")))
    return table


def blocks_table(blocks: tuple[BlockSection, ...]) -> Table:
    """Seconds of every block that was quantized, and of what in it took longest."""
    table = Table("block", *_right("seconds"), "most of it", box=None)
    for block in blocks:
        if block.seconds is None:  # of a part that learned on it
            continue
        most = max(block.phases, key=lambda name: block.phases[name], default="")
        said = f"{most} {block.phases[most]:.1f}" if most else ""
        table.add_row(*map(Text, (block.name, f"{block.seconds:.1f}", said)))
    return table


def summed(blocks: tuple[BlockSection, ...]) -> dict[str, float]:
    """Seconds of every phase over all blocks."""
    total: dict[str, float] = {}
    for block in blocks:
        for name, seconds in block.phases.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def show_profile(outcome: Outcome) -> None:
    """Print where a run's time and memory went."""
    record, console = outcome.record, open_console()
    console.print(steps_table(record.stages))
    if phases := summed(record.method.blocks):
        console.print()
        console.print(phases_table("quantize", phases))
        console.print()
        console.print(blocks_table(record.method.blocks))
    for data in record.data:
        if data.seconds is not None:
            console.print()
            console.print(phases_table(f"transcribe {data.name}", asdict(data.seconds)))
    console.print(f"record: {outcome.folder}", highlight=False, markup=False, soft_wrap=True)


def _right(*titles: str) -> list[Column]:
    return [Column(title, justify="right") for title in titles]


def command() -> None:
    """Profile the run that the command line asks for. Raises as `run_command`."""
    from edge_asr.cli.command import run_command

    run_command(sys.argv[1:], show_profile)


def main() -> int:
    """The exit code of the command."""
    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
