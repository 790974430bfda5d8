#!/usr/bin/env bash
# Install the package into an empty environment as a stranger would, and use it from an empty folder
# without a network. $1: "plain" (pip install .) or "editable" (pip install -e .).
set -euo pipefail
how=$1
source=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
flag=$([ "$how" = editable ] && echo -e || true)
# shellcheck disable=SC2086
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c "$source/constraints.txt" $flag "$source"
mkdir "$work/empty"
cd "$work/empty"
export HF_HUB_OFFLINE=1
PATH="$work/venv/bin:$PATH"
edge-asr --version
edge-asr --help >help.txt
python -m edge_asr.run method=gptq --help >>help.txt
edge-asr run method=rtn bits=3 data.limit=2 >row.txt 2>log.txt
python -m edge_asr.run method=gptq bits=4 data.limit=2 calibration.clips=2 >>row.txt 2>>log.txt
edge-asr report >>row.txt
edge-asr store size >>row.txt
status=0
edge-asr run method=gptqq 2>typo.txt || status=$?
[ "$status" = 2 ] && grep -q "did you mean gptq" typo.txt
[ "$(wc -l <typo.txt)" = 1 ]
cat row.txt
echo "$how: installed and used; $(find runs -name record.json | wc -l) records"
