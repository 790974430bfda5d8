"""The caches of the hub's libraries lie in a folder of the tests' own."""

from __future__ import annotations

import os
from tempfile import TemporaryDirectory

CACHE = TemporaryDirectory(prefix="edge-asr-tests-")
# Read when `datasets` is imported, which nothing does before a data set is opened.
os.environ.setdefault("HF_DATASETS_CACHE", CACHE.name)
