#!/usr/bin/env bash
# Lint, types and all tests, in the checkout's own .venv: bash tests/run.sh [pytest arguments]
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd -- "$root"
bash setup.sh dev
export PATH="$root/.venv/bin:$PATH"

types=$(mktemp)
trap 'rm -f "$types"' EXIT
{ mypy; } >"$types" 2>&1 &
checking=$!
ruff check .
ruff format --check .
lint-imports
# The counting code is compiled at its first import: once here, not in every test process.
python -c 'import imagenets.scoring.run_length'
wait $checking || { cat "$types" && exit 1; }
cat "$types"

# Each file of tests in one process, so that its fixtures are made once.
python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
