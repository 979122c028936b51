#!/usr/bin/env bash
# Downloads the annotation archive and puts its masks in place: bash datapreparation_anno.sh PREPARED {50,300,919,all}
# PYTHON chooses the interpreter.
set -euo pipefail
if [ $# -ne 2 ] || [ -z "$1" ]; then
    echo "usage: bash datapreparation_anno.sh PREPARED {50,300,919,all}" >&2
    exit 2
fi
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=$here/../.venv/bin/python
if [ ! -x "$python" ]; then python=python3; fi
exec "${PYTHON:-$python}" "$here/datapreparation_anno.py" "--save-dir=$1" "--mode=$2"
