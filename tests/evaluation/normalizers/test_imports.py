"""Normalizing text needs neither torch nor transformers."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import edge_asr.evaluation.normalizers
prefix = "edge_asr.evaluation.normalizers"
own = {name for name in sys.modules if name.startswith("edge_asr.")} - {"edge_asr.evaluation"}
assert all(name.startswith(prefix) for name in own), own
assert not {"torch", "transformers", "numpy", "pandas"} & set(sys.modules)
"""


def test_nothing_heavy_and_nothing_else_of_the_package_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
