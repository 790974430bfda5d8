"""What people type wrong: one line that names the option, its value and the remedy, exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_asr.cli.command import run_command
from edge_asr.cli.main import exit_code

SHORT = ("data.limit=4", "calibration.clips=4")

# What is typed, and what the answer has to say.
WRONG: dict[str, list[tuple[str, str]]] = {
    "values that JSON or arithmetic cannot hold": [
        ("method=spqr method.outliers.relative_threshold=inf", "relative_threshold=inf: must be"),
        ("model.tokens_per_second=nan", "model.tokens_per_second=nan: must be"),
        ("method=adaround method.rounding.learning_rate=inf", "learning_rate=inf: must be"),
        ("method=gptq method.rounding.damping=-1", "damping=-1: must be"),
        ("method=gptq method.rounding.damping=1e999", "damping=inf: must be"),
    ],
    "nothing where something is needed": [
        ("model=null", "model=null: known are"),
        ("method=null", "method=null: known are"),
        ("data=null", "data=null: known are"),
        ("protocol=null", "protocol=null: known are"),
        ("scheme=null", "scheme=null: known are"),
        ("~model", "~model: is needed"),
        ("~method", "~method: is needed"),
        ("~data", "~data: is needed"),
        ("~protocol", "~protocol: is needed"),
        ("model.path=", "model.path=: must be"),
        ("data=manifest data.path=", "data.path=: must be"),
        ("data=manifest", "data.path is needed; give data.path=..."),
        ("calibration=manifest", "calibration.path is needed; give calibration.path=..."),
        ("model=custom", "model.path is needed; give model.path=..."),
        ("results=", "results=: must be"),
        ("device=", "device=: must be"),
        ("data=manifest data.path=${oc.env:NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
        ("data=manifest data.path=${nowhere}", "data.path: Interpolation key 'nowhere'"),
    ],
    "a choice or option that is not there": [
        ("method=gptqq", "did you mean gptq"),
        ("methd=gptq", "did you mean method"),
        ("method.rounding.name=signround", "choose with method/rounding=signround"),
        ("method=rtn method.name=gptq", "choose with method=gptq"),
        ("method=gptq method.rounding.dampng=1", "did you mean damping"),
        ("method/stage=gptq", "method/stage: no such choice"),
        ("experiment=nope", "experiment=nope: known are"),
        ("device=tpu", "device"),
        ("device=cuda:7", "cuda"),
        ("runtime=tensorflow", "known are ctranslate2, onnxruntime, torch, whisper_cpp"),
        ("+extra.deep=1", "extra"),
        ("bits", "bits: is no option; write name=value"),
        ("method.range=mse", "a part is chosen with method/range="),
        ("encoder=4", "encoder=4: set one of its own: bits"),
        ("+bits=3", "leave out the plus"),
        ("~bits", "~bits: nothing can be left out"),
        ("data.where.knd=sentence", "no row of manifest"),
        ("encoder.bits=float decoder.bits=float", "use method=float"),
        ("=3", "=3"),
        ("--nosuchflag", "--nosuchflag: no such flag"),
        ("-z", "-z: no such flag"),
        ("--config-dir=/no/such/folder", "is no folder"),
        ("--config-name=nope", "nope"),
        ("--config-path=/tmp", "--config-dir FOLDER"),
        ("--cfg", "--cfg"),
        ("--cfg everything", "invalid choice"),
        ("--resolve", "goes with --cfg"),
    ],
    "a value out of its range": [
        ("threads=100000", "threads=100000: must be a whole number from 1 to 1024"),
        ("threads=0", "threads=0: must be"),
        ("protocol.resamples=100000000", "from 100 to 100 000"),
        ("method=awq method.transform.n_grid=1000000", "n_grid=1000000: must be"),
        ("method=hqq method.range.iterations=0", "iterations=0: must be"),
        ("bits=17", "bits=17: must be a whole number from 2 to 8"),
        ("bits=3.5", "bits=3.5: must be"),
        ("bits=true", "bits=true: must be"),
        ("bits=[3]", "bits=[3]: must be"),
        ("bits={a: 1}", "bits={a: 1}: must be"),
        ("group_size=-1", "group_size=-1: must be"),
        ("batch_size=1000000000", "batch_size=1000000000: must be"),
        ("calibration.clips=0", "calibration.clips=0: must be"),
        ("calibration.seed=-1", "calibration.seed=-1: must be"),
        ("data.condition=loud", "data.condition=loud: must be one of all, clean, noisy"),
        ("data.limit=-3", "data.limit=-3: must be"),
        ("data.where=3", "data.where=3: must be"),
        ("store_cap=lots", "store_cap=lots: give a size"),
        ("store_cap=10XB", "store_cap=10XB: give a size"),
        ("scheme.rules=3", "scheme.rules=3: must be"),
        ("scheme.rules=[3]", "scheme.rules[0]"),
        ("float_bits=8", "float_bits=8: must be one of 16, 32"),
        ("rerun=perhaps", "rerun=perhaps: must be true or false"),
    ],
    "several values, or none, where one is meant": [
        ("method=gptq,rtn", "add -m"),
        ("bits=3,4", "add -m"),
        ("-m method=choice(rtn,foo)", "method=foo"),
        ("-m method=gptq,foo", "method=foo: known are"),
        ("-m bits=4,17", "bits=17: must be"),
        ("-m bits=4,3 method=awq method.transform.n_grid=5,0", "n_grid=0: must be"),
        ("-m -c job", "give one of them"),
        ("-m hydra/launcher=slrum", "did you mean slurm"),
        ("experiment=demo", "this is a sweep over model, method, bits; add -m"),
        ("-m data=manifest data.path=/no/such.jsonl bits=4,3", "/no/such.jsonl"),
    ],
    "a file that is not there": [
        ("data=manifest data.path=/no/such.jsonl", "/no/such.jsonl"),
        ("model=custom model.path=/no/such/folder", "/no/such/folder"),
        ("method=gptq calibration=manifest calibration.path=/no/such.jsonl", "/no/such.jsonl"),
        ("model=whisper_tiny_en", "hf download"),
        ("results=/proc/no/such", "results=/proc/no/such"),
        ("store=/proc/no/such", "/proc/no/such"),
    ],
    "clips that cannot serve": [
        ("data.where.kind=opera", "matches no row"),
        ("method=gptq calibration.where.kind=opera", "matches no row"),
    ],
}
CASES = [
    pytest.param([words] if words.startswith("bits={") else words.split(), told, id=words)
    for kind in WRONG.values()
    for words, told in kind
]


@pytest.mark.parametrize(("words", "told"), CASES)
def test_a_mistake_is_one_line(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run"])
    short = [word for word in SHORT if word.partition("=")[0] not in " ".join(words)]
    assert exit_code(lambda: run_command([*words, *short])) == 2
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if not line.startswith("store: ") and not line[:8].replace(":", "").isdigit()  # the log
    ]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert told in lines[0]
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize(
    "flags", [["-m", "bits=3"], ["bits=3", "-m"], ["bits=3", "-m", "method=rtn"]]
)
def test_a_flag_may_stand_anywhere(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run"])
    assert exit_code(lambda: run_command([*flags, *SHORT])) == 0
    assert len(list(tmp_path.rglob("record.json"))) == 2


def test_hydras_own_looks_work(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_asr.run"]
    for words, told in (
        (["--cfg", "job", "method=gptq"], "damping_limit: 1.0"),
        (["method=gptq", "--cfg", "job", "--resolve"], "damping_limit: 1.0"),
        (["--version"], "edge_asr "),
        (["--hydra-help"], "Hydra"),
        (["--info", "config"], "Config"),
    ):
        done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, told in done.stdout) == (0, True), (words, done)


def test_a_typo_is_answered_before_torch_is_imported() -> None:
    program = (
        "import sys; from edge_asr.run import main; sys.argv[1:] = [{}]; code = main();"
        "print(code, 'torch' in sys.modules)"
    )
    for words in ("'method=gptqq'", "'methd=gptq'", "'bits=17'", "'-m', 'method=rtn,foo'"):
        done = subprocess.run(
            [sys.executable, "-c", program.format(words)], capture_output=True, text=True
        )
        assert done.stdout == "2 False\n", (words, done)
