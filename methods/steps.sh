# What pass.sh and self_training.sh share: the interpreter, the GPUs, and how a step runs on the set $save, $mode.
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-$root/.venv/bin/python}
if ! command -v "$PYTHON" >/dev/null; then
    echo "error: $PYTHON: no such interpreter; make it: bash setup.sh methods" >&2 && exit 1
fi
if ! gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null); then
    echo "error: $PYTHON: it has no PyTorch; make one that has: bash setup.sh methods" >&2 && exit 1
fi
set=$save/ImageNetS$mode seed=(${SEED:+--seed "$SEED"})
step() { printf '\n== %s\n' "$1"; }
method() { # name of the script, its arguments
    local launch=("$PYTHON")
    if [ "$gpus" -gt 1 ]; then
        launch+=("$root/command_line/torchrun.py" --standalone --nproc-per-node "$gpus")
    fi
    "${launch[@]}" "$root/methods/$1.py" --save-dir "$save" --mode "$mode" "${@:2}"
}
