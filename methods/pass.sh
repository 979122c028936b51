#!/usr/bin/env bash
# All steps of PASS, the benchmark paper's own method: bash methods/pass.sh PREPARED MODE OUT [small]
# PREPARED is the folder that data_preparation.sh filled, MODE is 50, 300 or 919. Run it again to resume after a
# stop. small: settings for the demo's set, minutes on two cores. It uses the GPUs of this machine, as many as
# divide a batch of 256. PYTHON names an interpreter with the packages of the methods (default: the checkout's .venv,
# made by bash setup.sh methods). SEED replaces the seeds of all steps.
set -euo pipefail
usage() { echo "usage: bash methods/pass.sh PREPARED MODE OUT [small], with MODE 50, 300 or 919"; }
wrong() { usage >&2 && exit 2; }
case ${1:-} in -h | --help) usage && exit 0 ;; esac
case $#:${4:-small} in 3:* | 4:small) ;; *) wrong ;; esac
save=$1 mode=$2 out=$3 size=${4:-}
case $mode in
50) backbone=resnet18 ;;
300 | 919) backbone=resnet50 ;;
*) wrong ;;
esac
case $save:$out in :* | *: | -* | *:-*) wrong ;; esac
source "$(dirname -- "${BASH_SOURCE[0]}")/steps.sh"
while ((gpus > 1 && 256 % gpus)); do gpus=$((gpus - 1)); done # a batch is split evenly

recipe=(--recipe pass) restarts=30 finetuning=()
if [ "$size" = small ]; then
    recipe=(--recipe small) backbone=timm/test_resnet restarts=10
    finetuning=(--epochs 10 --batch-size 32 --crop 128 --lr 2)
fi
features=(--backbone "$backbone" --checkpoint "$out/attention/last.pth")

step "1. pre-training"
method pretrain "${recipe[@]}" "${seed[@]}" --output-dir "$out/pretraining"
step "2. attention"
method pixel_attention "${recipe[@]}" "${seed[@]}" --checkpoint "$out/pretraining/last.pth" --output-dir "$out/attention"
step "2. clusters"
method cluster "${features[@]}" "${seed[@]}" --restarts "$restarts" --output-dir "$out/clusters"
step "2. threshold and pseudo labels"
method pseudo_labels "${features[@]}" --centroids "$out/clusters/centroids.npy" --splits train --threshold auto --output-dir "$out/labels"
step "3. fine-tuning on the pseudo labels"
method finetune --recipe pass --backbone "$backbone" --checkpoint "$out/pretraining/last.pth" \
    --masks "$out/labels/train" "${finetuning[@]}" "${seed[@]}" --evaluate-every 0 --output-dir "$out/finetuning"
step "4. predictions"
method predict --model "$out/finetuning/last.pth" --output-dir "$out/predictions"

step "scores on validation, in percent"
scoring=(--predict-dir "$out/predictions/validation" --gt-dir "$set/validation-segmentation" --mode "$mode"
    --results-dir "$out/results")
"$PYTHON" "$root/evaluation/match.py" "${scoring[@]}" --session-name pass >"$out/matching.txt"
"$PYTHON" "$root/evaluation/evaluator.py" "${scoring[@]}" --match pass --output "$out/scores.json" \
    --report "$out/report.html" --image-dir "$set/validation" >"$out/scores.txt"
grep -A 1 '^ *Acc  *mIoU' "$out/scores.txt"
echo "the report to look at: $out/report.html"
if [ -d "$set/test" ]; then
    printf '\nFor the test set, with the same matching:\n'
    echo "  python evaluation/submission.py --predict-dir $out/predictions/test --save-dir $save --mode $mode" \
        "--results-dir $out/results --match pass --method-name … --training-data … --training-scheme …" \
        "--networks … --link … --description … --output submission.zip"
fi
