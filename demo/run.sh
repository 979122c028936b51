#!/usr/bin/env bash
# Makes a small set of synthetic masks and predictions, matches their clusters to classes, and scores them.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/setup.sh"
python=$root/.venv/bin/python
output=$root/demo/output
rm -rf -- "$output"
"$python" "$root/demo/make_masks.py" "$output"
cd -- "$output"
masks=(--predict-dir predictions --gt-dir validation-segmentation --mode 50)
"$python" "$root/evaluation/match.py" "${masks[@]}" --session-name demo
"$python" "$root/evaluation/evaluator.py" "${masks[@]}" --match demo --output scores.json
echo "These masks are synthetic; everything lies in $output"
