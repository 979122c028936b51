#!/usr/bin/env bash
# The whole pipeline in one command, on synthetic pictures: bash demo/run.sh [OUTPUT]
# Everything is made anew in demo/output, or in OUTPUT, a folder that does not exist yet. PYTHON names an
# interpreter with the packages that setup.sh installs; without it, setup.sh makes one.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
case $#:${1:-} in
0: | 1:[!-]*) ;;
*) echo "usage: bash demo/run.sh [OUTPUT]" >&2 && exit 2 ;;
esac
if [ -z "${PYTHON:-}" ]; then
    bash "$root/setup.sh"
    PYTHON=$root/.venv/bin/python
fi
case $PYTHON in /*) ;; */*) PYTHON=$PWD/$PYTHON ;; esac
export PYTHON

if [ $# = 0 ]; then rm -rf -- "$root/demo/output"; fi
output=${1:-$root/demo/output}
case $output in /*) ;; *) output=$PWD/$output ;; esac
set=prepared/ImageNetS50
step() { printf '\n== %s\n' "$1"; }
evaluate() { # name, folder of predictions, more arguments of evaluator.py
    local name=$1 predictions=$2
    local common=(--predict-dir "$predictions" --gt-dir "$set/validation-segmentation" --mode 50
        --results-dir results)
    "$PYTHON" "$root/evaluation/match.py" "${common[@]}" --session-name "$name" >"$name-matching.txt"
    "$PYTHON" "$root/evaluation/evaluator.py" "${common[@]}" --match "$name" --output "$name.json" \
        "${@:3}" >"$name-scores.txt"
    grep -A 1 '^ *Acc  *mIoU' "$name-scores.txt"
}

step "a synthetic ImageNet: no photographs, drawn objects; only the folder names are real"
"$PYTHON" "$root/demo/make_imagenet.py" --output-dir "$output"
# README's walkthrough needs everything below: after a stop, its commands would miss files.
again="run this again, it begins anew"
if [ $# = 1 ]; then again="remove $output, then run this again"; fi
unfinished() { echo "error: the demo did not finish, and $output is incomplete: $again" >&2; }
trap unfinished EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# From here on in the output folder, so that neither the output nor the report names paths of this machine.
cd -- "$output"
export IMAGENETS_LISTS=lists IMAGENETS_MIRROR=mirror

step "data preparation"
bash "$root/datapreparation/data_preparation.sh" imagenet prepared 50 false
"$PYTHON" "$root/datapreparation/verify.py" --save-dir prepared --mode 50

step "the unsupervised baseline: foregrounds, k-means over their features"
"$PYTHON" "$root/methods/kmeans.py" --save-dir prepared --mode 50 --output-dir baseline

step "its scores, in percent"
evaluate baseline baseline/validation \
    --report report.html --image-dir "$set/validation"

step "trivial predictions to compare with"
for kind in background random random-clusters; do
    "$PYTHON" "$root/methods/trivial.py" --predict-dir baseline/validation --mode 50 \
        --kind "$kind" --output-dir "$kind"
    evaluate "$kind" "$kind" >/dev/null
done
"$PYTHON" "$root/evaluation/table.py" {background,random,random-clusters,baseline}.json

trap - EXIT
printf '\nThe pictures are synthetic: the numbers show that the toolbox works, but say nothing about how good a method is.\n'
echo "The report to look at: $output/report.html"
