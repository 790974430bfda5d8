"""The package can be imported where the system is no Unix."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# `resource` and `fcntl` are there on Unix only. psutil, which accelerate needs, has a module for
# every system, and that for this one may have them.
SCRIPT = """
import importlib, pkgutil, sys
import psutil

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("resource", "fcntl"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in ("resource", "fcntl"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Refuse())
import edge_asr
names = [one.name for one in pkgutil.walk_packages(edge_asr.__path__, "edge_asr.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
from edge_asr.memory import resource
assert resource is None
print(len(names))
"""


def test_every_module_is_imported_without_resource_and_fcntl() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 80


def test_every_package_is_installed() -> None:
    """Those beside conf/, which lies elsewhere."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    own = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "edge_asr").rglob("__init__.py")
    }
    assert own | {"edge_asr.conf"} == set(listed)
