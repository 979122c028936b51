#!/usr/bin/env bash
# Makes .venv in the checkout, once, with the tested versions: bash setup.sh [dev]
# With "dev", also what the tests and benchmarks need. BASE_PYTHON chooses the interpreter.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
kind=${1:-user}
requirements=(-r "$root/requirements.txt")
if [ "$kind" = dev ]; then requirements+=(-r "$root/requirements-dev.txt"); fi

stamp=$root/.venv/.installed-$kind
wanted=$(cat "$root"/requirements*.txt | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

python=${BASE_PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
    echo "error: no $python found: install Python 3.10 or newer (apt install python3 python3-venv), or name one: BASE_PYTHON=/path/to/python bash setup.sh" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $("$python" --version) is too old: Python 3.10 or newer is needed; name one: BASE_PYTHON=/path/to/python bash setup.sh" >&2
    exit 1
fi
# Debian and Ubuntu ship Python without ensurepip; its package is python3-venv.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -qq -y python3-venv >/dev/null
    else
        echo "error: $python has no venv module: sudo apt install python3-venv, then run this again" >&2
        exit 1
    fi
fi

if [ ! -x "$root/.venv/bin/python" ] || ! "$root/.venv/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "making $root/.venv (once; a few minutes, most of it for torch)" >&2
    "$python" -m venv --clear "$root/.venv"
fi
"$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c "$root/requirements-tested.txt" "${requirements[@]}"
printf '%s\n' "$wanted" >"$stamp"
if [ "$kind" = dev ]; then printf '%s\n' "$wanted" >"$root/.venv/.installed-user"; fi
