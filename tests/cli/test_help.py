"""`--help` names every option there is, and of a chosen recipe only those that it has."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from edge_asr.cli.command import run_command
from edge_asr.cli.compose import Composer

Shown = Callable[..., str]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    def show(*words: str) -> str:
        run_command([*words, "--help"])
        return capsys.readouterr().out

    return show


def options(text: str) -> set[str]:
    return set(re.findall(r"^  ([a-z_.]+)=", text, flags=re.M))


def test_every_option_is_there_with_its_default(shown: Shown) -> None:
    text = shown()
    with Composer() as composer:
        config = composer.config([])
    for name, node in config.items():
        if name in ("method", "experiment"):
            continue
        inner = node if hasattr(node, "keys") else {}
        names = [f"{name}.{key}" for key in inner if key != "name"] or [str(name)]
        assert set(names) <= options(text), names
    assert "method.rounding.damping_limit=1.0" in text
    assert "method.transform.n_grid=20" in text
    assert "method              adaround, autoround, awq, best, best_tuned, float" in text
    assert "  bits=default" in text
    assert "(a whole number from 2 to 8 or" in text


def test_a_chosen_recipe_shows_what_can_be_set_for_it(shown: Shown) -> None:
    gptq = {name for name in options(shown("method=gptq")) if name.startswith("method.")}
    assert gptq == {
        f"method.rounding.{name}"
        for name in (
            "observe", "compensation", "alpha", "damping", "damping_limit", "block_size",
            "act_order", "static_groups", "ordered_groups", "polish",
        )
    }  # fmt: skip
    assert "method.range.beta=" in shown("-m", "method=hqq,gptq", "bits=4,3")
    spqr = shown("method=spqr", "data=manifest")
    assert "method.rounding.damping=1.0" in spqr
    assert "method.outliers.relative_threshold=" in spqr
    assert "data.path=..." in spqr


def test_a_line_is_no_longer_than_a_terminal(shown: Shown) -> None:
    assert max(map(len, shown().splitlines())) <= 100


def test_it_imports_no_torch() -> None:
    program = (
        "import sys; from edge_asr.cli.command import run_command; run_command(['--help']);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr
