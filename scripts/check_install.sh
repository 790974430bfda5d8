#!/usr/bin/env bash
# Use an installed edge_asr as a stranger would: from an empty folder, without a network.
# $1: the bin folder of the environment it is installed in.
set -euo pipefail
PATH="$(cd "$1" && pwd):$PATH"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1

edge-asr --version
edge-asr --help >help.txt
python -m edge_asr.run method=gptq --help >>help.txt
grep -q "method.rounding.damping_limit=1.0" help.txt
edge-asr run method=rtn bits=3 data.limit=2 >rows.txt 2>log.txt
python -m edge_asr.run method=gptq bits=4 data.limit=2 calibration.clips=2 >>rows.txt 2>>log.txt
edge-asr report >>rows.txt
grep -q "observablehq/plot" runs/report.html
edge-asr store size >>rows.txt
edge-asr export --help >>help.txt
status=0
edge-asr run method=gptqq 2>typo.txt || status=$?
[ "$status" = 2 ]
[ "$(wc -l <typo.txt)" = 1 ]
grep -q "did you mean gptq" typo.txt
echo "$(python -c 'import edge_asr; print(edge_asr.__file__)'): $(find runs -name record.json | wc -l) records"
