#!/usr/bin/env bash
# Makes .venv in the checkout, once, with the tested versions, and installs the toolbox's library there in
# place ("editable"), so that `import imagenets` works in any folder:
#   bash setup.sh            for preparation, scoring, reports and the k-means baseline
#   bash setup.sh methods    also for networks: torchvision with its matching torch, timm, pyarrow
#   bash setup.sh zero-shot  also open_clip, for methods/zero_shot.py
#   bash setup.sh dev        also what the tests and benchmarks need
# Installed packages are kept: a smaller kind after a larger one changes nothing.
# BASE_PYTHON chooses the interpreter.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
kinds=(user methods zero-shot dev)
extras=(report,kmeans methods zero-shot dev)
venv=$root/.venv
stamp=$venv/.installed

# The index of a kind in `kinds`; -1 if there is none of that name.
rank() {
    for i in "${!kinds[@]}"; do if [ "${kinds[i]}" = "$1" ]; then echo "$i"; return; fi; done
    echo -1
}
wanted=$(rank "${1-user}")
if [ "$wanted" = -1 ] || [ $# -gt 1 ]; then
    echo "usage: bash setup.sh [methods|zero-shot|dev]" >&2
    exit 2
fi
# A link leads to another environment, possibly of another checkout, which would get this library installed.
if [ -e "$venv" ] && [ ! -d "$venv" ]; then
    echo "error: $venv is a file, where the environment belongs: move it away, then run this again" >&2
    exit 1
fi
if [ -L "$venv" ]; then
    echo "error: $venv is a symbolic link to $(readlink -- "$venv"), an environment that is not this checkout's own: remove the link (rm $venv), then run this again" >&2
    exit 1
fi
# The stamp holds the kind, then what the environment was made from: the lists of packages, and the checkout's path,
# because an installed library points to the path that the checkout had.
source="$(cat "$root"/requirements*.txt "$root/pyproject.toml" "${BASH_SOURCE[0]}" | cksum) $root"
made=-1
if [ -f "$stamp" ]; then made=$(rank "$(head -n 1 "$stamp")"); fi
# The stamp is not enough: the system's Python behind .venv may be gone or replaced.
works() { "$venv/bin/python" -I -c "$1" 2>/dev/null; }
if [ "$made" -ge "$wanted" ] && [ "$(tail -n +2 "$stamp")" = "$source" ] && works 'import imagenets'; then exit 0; fi

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
    made=-1
    if works 'import ensurepip'; then # made by another tool: what is in it stays
        "$venv/bin/python" -m ensurepip >&2
    else
        echo "making $venv (once; a few minutes, most of it for torch)" >&2
        "$python" -m venv --clear "$venv"
    fi
fi
# An environment with torchvision keeps it, even if only the other packages are updated.
kind=$((made > wanted ? made : wanted))
if [ "$kind" -ge "$(rank methods)" ]; then
    tested=$venv/tested.txt
    grep -v '^torch==' "$root/requirements-tested.txt" >"$tested"
    constraints=(-c "$tested" -c "$root/requirements-tested-torchvision.txt")
else
    constraints=(-c "$root/requirements-tested.txt")
fi
rm -f "$stamp"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${constraints[@]}" -e "$root[${extras[kind]}]"
printf '%s\n' "${kinds[kind]}" "$source" >"$stamp"
