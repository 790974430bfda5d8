"""`python -m edge_asr.run`: compress a checkpoint and measure what it costs and gains."""

from __future__ import annotations

import sys

from edge_asr.errors import USAGE_ERROR, UserError

INTERRUPTED = 130


def main() -> None:
    """Run what the command line asks for; one line for a mistake, no traceback for Ctrl-C."""
    try:
        # Imported here because it takes seconds, in which Ctrl-C must be quiet too.
        from edge_asr.cli.command import run_command

        if not run_command(sys.argv[1:]):
            sys.exit(USAGE_ERROR)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        print(
            "interrupted: finished records stay, the run under way has none; the same command "
            "goes on from the steps, blocks and hypotheses already there",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
