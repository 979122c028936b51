#!/usr/bin/env bash
# Makes .venv in the checkout, once, with the tested versions, and installs the toolbox's library there in
# place ("editable"), so that `import imagenets` works in any folder: bash setup.sh [dev]
# With "dev", also what the tests and benchmarks need. BASE_PYTHON chooses the interpreter.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
kind=${1:-user}
requirements=(-r "$root/requirements.txt")
if [ "$kind" = dev ]; then requirements+=(-r "$root/requirements-dev.txt"); fi

venv=$root/.venv
stamp=$venv/.installed-$kind
# The checkout's path too: one that was moved is installed from where it no longer is.
wanted="$(cat "$root"/requirements*.txt "$root/pyproject.toml" | cksum) $root"
# A stamp alone proves nothing: the system's Python, to which .venv leads, may be gone or another one.
works() { "$venv/bin/python" -I -c "$1" 2>/dev/null; }
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && works 'import imagenets'; then exit 0; fi

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

if ! works 'import pip'; then
    echo "making $venv (once; a few minutes, most of it for torch)" >&2
    "$python" -m venv --clear "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c "$root/requirements-tested.txt" "${requirements[@]}"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e "$root"
printf '%s\n' "$wanted" >"$stamp"
if [ "$kind" = dev ]; then printf '%s\n' "$wanted" >"$venv/.installed-user"; fi
