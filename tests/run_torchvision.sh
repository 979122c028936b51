#!/usr/bin/env bash
# The tests that need torchvision, in an environment of their own: torchvision fits one build of torch alone,
# and the toolbox needs neither. bash tests/run_torchvision.sh [pytest arguments]
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd -- "$root"
python=$root/.venv-torchvision/bin/python
if [ ! -x "$python" ]; then "${BASE_PYTHON:-python3}" -m venv "$root/.venv-torchvision"; fi
case $(uname -m) in
    x86_64) versions=(torch==2.14.1 torchvision==0.29.1) ;;
    *) versions=(torch==2.9.1 torchvision==0.24.1) ;;
esac
# All but torch itself as tested.
grep -v '^torch==' requirements-tested.txt >"$root/.venv-torchvision/constraints.txt"
"$python" -m pip install --quiet --disable-pip-version-check -c "$root/.venv-torchvision/constraints.txt" \
    "${versions[@]}" timm==1.0.31 -r requirements.txt pytest
exec "$python" -m pytest tests/test_*_torchvision.py "$@"
