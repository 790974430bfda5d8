"""`edge-asr COMMAND` and `python -m edge_asr COMMAND`: the commands by name."""

from __future__ import annotations

import sys
from importlib import import_module

import edge_asr

COMMANDS = {
    "run": ("edge_asr.run", "compress a checkpoint and measure what it costs and gains"),
    "sweep": ("edge_asr.sweep", "how far a sweep is, what failed and why, hours left"),
    "report": ("edge_asr.report.__main__", "all records of a folder as tables"),
    "compare": ("edge_asr.compare", "finished runs against one another, clip by clip"),
    "rescore": ("edge_asr.rescore", "stored hypotheses by another protocol, without a model"),
    "export": ("edge_asr.export.__main__", "a quantized model in the format of a runtime"),
    "profile": ("edge_asr.profile", "where the seconds and the memory of a run go"),
    "time": ("edge_asr.time", "speed and memory of exported models on this machine"),
    "store": ("edge_asr.store.__main__", "what finished steps take up, and how to make room"),
}


def main() -> int:
    """Run the command that is named first; its exit code."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print("usage: edge-asr COMMAND ... (or python -m edge_asr.COMMAND ...)\n")
        for command, (_, purpose) in COMMANDS.items():
            print(f"  {command:8} {purpose}")
        print("\nedge-asr COMMAND --help tells more; edge-asr --version tells the version.")
        return 0
    if name == "--version":
        print(f"edge_asr {edge_asr.__version__}")
        return 0
    if name not in COMMANDS:
        from edge_asr.settings import nearest

        print(f"error: {name}: no such command; {nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv[:] = [f"{sys.argv[0]} {name}", *rest]
    module = import_module(COMMANDS[name][0])
    code: int = module.main()
    return code


if __name__ == "__main__":
    sys.exit(main())
