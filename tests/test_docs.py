"""What the documents show works as they show it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from make_support_table import page
from tiny import tiny_whisper

from edge_asr.cli.arguments import take_apart
from edge_asr.cli.compose import Composer
from edge_asr.cli.overrides import parse, prepare, values

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "results/README.md"]
# Things that only the worked example's package has.
EXAMPLE = ("deviations", "data=folder", "protocol=wording")


def commands(document: Path) -> list[str]:
    """Every `python -m edge_asr.run ...` of a document's code blocks."""
    found = []
    for block in re.findall(r"^```\w*\n(.*?)^```", document.read_text(), flags=re.M | re.S):
        whole = block.replace("\\\n", " ")
        found += re.findall(r"^(?:python -m edge_asr\.|edge-asr )run (.*)$", whole, flags=re.M)
    return [line.partition("  #")[0].strip() for line in found]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_a_document_shows_can_be_composed(document: Path) -> None:
    shown = commands(document)
    # What finds them must not fall silent.
    least = {"README.md": 8, "docs/choose_bits.md": 2, "docs/add_a_method.md": 4}
    assert len(shown) >= least.get(document.relative_to(ROOT).as_posix(), 0)
    for command in shown:
        if any(name in command for name in EXAMPLE):
            continue
        asked = take_apart(shlex.split(command))
        with Composer() as composer:
            overrides = parse(prepare(asked.words, sweep=bool(asked.flags.multirun)))
            composer.settings([next(values(one)) for one in overrides])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The worked example of docs/add_a_method.md, installed in a folder."""
    folder = tmp_path / "site"
    text = (ROOT / "docs/add_a_method.md").read_text()
    for name, code in re.findall(r"^`([^`\n]+)`\n\n```\w+\n(.*?)^```", text, flags=re.M | re.S):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    ((group, points),) = project["entry-points"].items()
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text(f"[{group}]\n" + "\n".join(lines) + "\n")
    return folder


def run(package: Path, folder: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    """Commands one after the other in a process with the package; their codes end the output."""
    program = (
        "import json, sys\nfrom edge_asr.run import main\ncodes = []\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['run', *words]\n"
        "    codes.append(main())\n"
        "print(codes)"
    )
    return subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
    )


def test_the_worked_example_of_a_package_works(package: Path, tmp_path: Path) -> None:
    tiny_whisper(tmp_path / "model")
    clips = tmp_path / "clips"
    clips.mkdir()
    for index in range(3):
        wave = np.sin(np.arange(16000) * (0.1 + 0.05 * index)).astype(np.float32) / 2
        soundfile.write(clips / f"{index}.wav", wave, 16000)
        (clips / f"{index}.txt").write_text(f"One, two {index}!")
    short = ["model=custom", f"model.path={tmp_path / 'model'}", "bits=3"]
    own = ["data=folder", f"data.path={clips}", "protocol=wording"]
    done = run(
        package,
        tmp_path,
        [*short, *own, "method/range=deviations", "method.range.width=2.5"],
        [*short, "data.limit=2", "hydra.searchpath=[pkg://edge_asr_extra.conf]",
         "method=deviations", "calibration=folder", f"calibration.path={clips}"],
        ["method/range=deviations", "--help"],
    )  # fmt: skip
    assert done.stdout.endswith("[0, 0, 0]\n"), done.stderr
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("record.json")]
    made = {one["method"]["name"]: one for one in records}
    assert made["rtn+range=deviations+range.width=2.5"]["results"][0]["protocol"] == "wording"
    assert made["gptq+range=deviations"]["method"]["parts"]["range"]["width"] == 3.0
    assert "method.range.width=3.0" in done.stdout
    assert "Standard deviations on either side of the mean (a number above 0" in done.stdout


def test_its_mistakes_are_one_line_too(package: Path, tmp_path: Path) -> None:
    mistakes = {
        "method/range=deviation": "did you mean deviations",
        "method/range=deviations method.range.width=-1": "method.range.width=-1: must be",
        "data=folder": "data.path is needed; give data.path=...",
        "data=folder data.path=/no/such": "data.path=/no/such: holds no .wav file",
        "protocol=wordings": "did you mean wording",
    }
    done = run(package, tmp_path, *(words.split() for words in mistakes))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stdout == f"{[2] * len(mistakes)}\n", done.stderr
    for error, told in zip(errors, mistakes.values(), strict=True):
        assert told in error


def test_a_package_that_cannot_be_imported_is_named(package: Path, tmp_path: Path) -> None:
    (package / "edge_asr_extra/clips.py").write_text("import no_such_module\n")
    done = run(package, tmp_path, ["method=gptq"])
    assert done.stdout == "[2]\n"
    assert done.stderr.splitlines() == [
        "error: plugin extra (edge_asr_extra) cannot be imported: ModuleNotFoundError: No module "
        "named 'no_such_module'; mend or uninstall edge_asr_extra"
    ]


def test_the_support_table_is_that_of_the_registries() -> None:
    again = "run python scripts/make_support_table.py"
    assert (ROOT / "docs/support.md").read_text() == page(), again
