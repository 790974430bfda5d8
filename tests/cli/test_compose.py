"""What is misspelt is answered with its neighbour; a user's own configuration joins."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_asr.cli.compose import Composer, compose_settings
from edge_asr.errors import UserError


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("method=gtpq", "method=gtpq: did you mean gptq"),
        ("method/rounding=nearst", "method/rounding=nearst: did you mean nearest"),
        ("+method/rounding=nearst", "method/rounding=nearst: did you mean nearest"),
        ("methd=gptq", "methd=gptq: no option methd; did you mean method"),
        ("bit=3", "bit=3: no option bit; did you mean bits"),
        ("metod.rounding.damping=0.1", "no option metod; did you mean method"),
        ("method/rouding=gptq", "method/rouding: no such choice; did you mean method/rounding"),
        ("quux=1", "no option quux; known are act_bits"),
        ("method=omniquant method.range.aug_los=true", "no option aug_los; did you mean aug_loss"),
        ("method.rouding.act_order=true", "no option rouding; did you mean rounding"),
        ("method=rtn method.rounding.polish=1", "rounding=nearest has no option polish; .*gptq"),
        ("method.range.foo=1", "no option foo; method/range=minmax has none"),
        ("method.defaults=1", "no option defaults"),
        ("data.limt=3", "no option limt; did you mean limit"),
        ("encoder.bitz=3", "encoder.bitz=3: no option bitz; did you mean bits"),
        ("runtime=trch", "runtime=trch: did you mean torch"),
        ("protocol=open_asr", "protocol=open_asr: did you mean open_asr_2026"),
        ("experiment=dem", "experiment=dem: did you mean demo"),
        ("model=custom", "model.path is needed"),
        ("method=gptq,rtn", "several values; add -m"),
        ("model=null", "model=null: known are custom"),
        ("~method", "~method: is needed"),
        ("method=[rtn]", "method=.*known are"),
        ("+unknown=1", "unknown=1: no such setting"),
        ("data=manifest data.path=${oc.env:NO_SUCH_VARIABLE}", "data.path: .*NO_SUCH_VARIABLE"),
        ("+method=gptq", "Multiple values for method"),
    ],
)
def test_a_wrong_word_is_answered(words: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        compose_settings(*words.split())
    assert "\n" not in str(error.value)


def test_a_folder_of_ones_own_joins(tmp_path: Path) -> None:
    own = tmp_path / "my conf (é)"
    (own / "method").mkdir(parents=True)
    (own / "scheme").mkdir()
    recipe = "defaults: [base, override range: mse, override rounding: gptq, _self_]\nname: mine\n"
    (own / "method/mine.yaml").write_text(recipe)
    (own / "scheme/w6.yaml").write_text("name: w6\nrules: [{bits: 6}]\n")
    with Composer(str(own)) as composer:
        settings = composer.settings(["method=mine", "scheme=w6"])
        assert "mine" in composer.options("method")
        with pytest.raises(UserError, match="did you mean mine"):
            composer.settings(["method=mne"])
    assert settings.method.stages["range"]["name"] == "mse"
    assert settings.scheme.rules == ({"bits": 6},)
    with pytest.raises(UserError, match=r"config-dir=.*nowhere: is no folder"):
        Composer(str(tmp_path / "nowhere")).__enter__()


def test_a_search_path_of_hydras_joins(tmp_path: Path) -> None:
    (tmp_path / "scheme").mkdir()
    (tmp_path / "scheme/w6.yaml").write_text("name: w6\nrules: [{bits: 6}]\n")
    settings = compose_settings(f"hydra.searchpath=[file://{tmp_path}]", "scheme=w6")
    assert settings.scheme.rules == ({"bits": 6},)


def test_a_primary_configuration_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "phone.yaml").write_text("defaults: [config, _self_]\nbits: 3\nbatch_size: 4\n")
    with Composer(str(tmp_path), "phone") as composer:
        settings = composer.settings(["method=gptq"])
    assert (settings.bits, settings.batch_size) == (3, 4)
