"""`python -m edge_asr.run`: compress a checkpoint and measure what it costs and gains."""

from __future__ import annotations

import sys

from edge_asr.cli.main import exit_code


def run() -> None:
    """Run what the command line asks for."""
    if "--version" in sys.argv[1:]:
        import edge_asr

        print(f"edge_asr {edge_asr.__version__}")
        return
    # Imported here because it takes a moment, in which Ctrl-C must be quiet too.
    from edge_asr.cli.command import run_command

    run_command(sys.argv[1:])


def main() -> int:
    """The exit code of the command."""
    return exit_code(
        run,
        "interrupted: finished records stay, the run under way has none; the same command goes on "
        "from the steps, blocks and hypotheses already there",
    )


if __name__ == "__main__":
    sys.exit(main())
