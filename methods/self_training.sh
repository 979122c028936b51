#!/usr/bin/env bash
# Self-training on clusters: cluster the foregrounds of train with k-means, train a segmentation network on them,
# predict with it:
# bash methods/self_training.sh PREPARED MODE OUT BACKBONE CHECKPOINT [--rounds 2] [options of finetune.py]
# PREPARED is the folder that data_preparation.sh filled, MODE is 50, 300 or 919. Run it again to resume after a
# stop. --rounds 2 trains once more, on the predictions of train, also after a run of one round. It uses all GPUs of
# this machine. PYTHON names an interpreter with the packages of the methods (default: the checkout's .venv, made by
# bash setup.sh methods). SEED replaces the seeds of all steps, CLUSTERS the number of clusters (default: the mode's
# classes).
set -euo pipefail
usage() {
    echo "usage: bash methods/self_training.sh PREPARED MODE OUT BACKBONE CHECKPOINT [--rounds 2] [options of finetune.py]" >&2
    exit 2
}
[ $# -ge 5 ] || usage
save=$1 mode=$2 out=$3 backbone=$4 checkpoint=$5 rounds=1
shift 5
case $mode in 50 | 300 | 919) ;; *) usage ;; esac
case $save:$out:$backbone:$checkpoint in :* | *::* | *: | -* | *:-*) usage ;; esac
if [ "${1:-}" = --rounds ]; then
    case ${2:-} in [1-9]) rounds=$2 ;; *) usage ;; esac
    shift 2
fi
source "$(dirname -- "${BASH_SOURCE[0]}")/steps.sh"
clusters=${CLUSTERS:-$mode} splits=(validation)
if [ -d "$set/test" ]; then splits+=(test); fi
network=(--backbone "$backbone" --checkpoint "$checkpoint")

step "1. foregrounds and clusters; the farthest fifth of each cluster is left out"
method kmeans "${network[@]}" --foreground features --clusters "$clusters" "${seed[@]}" --leave-out 0.2 \
    --splits train "${splits[@]}" --output-dir "$out/clusters"
masks=$out/clusters/train
for ((round = 1; round <= rounds; round++)); do
    step "2. training on them, round $round"
    method finetune --recipe self-training "${network[@]}" --masks "$masks" --evaluate-every 0 "${seed[@]}" "$@" \
        --output-dir "$out/round$round"
    step "3. predictions, round $round"
    model=$out/round$round/last.pth
    method predict --model "$model" --sharpen --splits "${splits[@]}" --output-dir "$out/predictions$round"
    if [ "$round" -lt "$rounds" ]; then
        method predict --model "$model" --sharpen --splits train --output-dir "$out/labels$round"
        masks=$out/labels$round/train
    fi
done

score() { # name, folder of predictions, their number of clusters, more arguments of evaluator.py
    local scoring=(--predict-dir "$2" --gt-dir "$set/validation-segmentation" --mode "$mode"
        --clusters "$3" --results-dir "$out/results")
    "$PYTHON" "$root/evaluation/match.py" "${scoring[@]}" --session-name "$1" >"$out/$1-matching.txt"
    "$PYTHON" "$root/evaluation/evaluator.py" "${scoring[@]}" --match "$1" --output "$out/$1-scores.json" \
        "${@:4}" >"$out/$1-scores.txt"
    printf '%s\n' "$1:" && grep -A 1 '^ *Acc  *mIoU' "$out/$1-scores.txt"
}
step "scores on validation, in percent"
score clusters "$out/clusters/validation" "$clusters"
# The networks have an output for each class: their labels are 0..$mode, however many clusters they learned.
for ((round = 1; round < rounds; round++)); do score "round$round" "$out/predictions$round/validation" "$mode"; done
score "round$rounds" "$out/predictions$rounds/validation" "$mode" \
    --report "$out/report.html" --image-dir "$set/validation"
echo "the report to look at: $out/report.html"
