#!/usr/bin/env bash
# Makes a complete ImageNet-S from a copy of ImageNet:
# bash data_preparation.sh IMAGENET PREPARED {50,300,919,all} [true|false [--absolute]]
# The fourth argument: copy the training images (true) or link them (false, the default). --absolute: links hold
# the full path, even if IMAGENET and PREPARED lie below one folder.
# Stops at the first step that fails, with its exit status. PYTHON chooses the interpreter.
set -euo pipefail
usage() {
    echo "usage: bash data_preparation.sh IMAGENET PREPARED {50,300,919,all} [true|false [--absolute]]; true copies the training images, false (default) links them" >&2
    exit 2
}
if [ $# -lt 3 ] || [ $# -gt 5 ] || [ -z "$1" ] || [ -z "$2" ]; then usage; fi
case $3 in 50 | 300 | 919 | all) ;; *) usage ;; esac
copy=()
case ${4:-false} in true) copy=(--copy) ;; false) ;; *) usage ;; esac
case ${5:---absolute} in --absolute) copy+=(${5+"$5"}) ;; *) usage ;; esac

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=$here/../.venv/bin/python
if [ ! -x "$python" ]; then python=python3; fi
PYTHON=${PYTHON:-$python}
export PYTHON

# A missing val should be found now, not after hours of copying train.
"$PYTHON" "$here/datapreparation_val.py" "--imagenet-dir=$1" "--save-dir=$2" "--mode=$3" --check
"$PYTHON" "$here/datapreparation_train.py" "--imagenet-dir=$1" "--save-dir=$2" "--mode=$3" ${copy[@]+"${copy[@]}"}
"$PYTHON" "$here/datapreparation_val.py" "--imagenet-dir=$1" "--save-dir=$2" "--mode=$3"
"$PYTHON" "$here/datapreparation_train_semi.py" "--imagenet-dir=$1" "--save-dir=$2" "--mode=$3"
bash "$here/datapreparation_anno.sh" "$2" "$3"
