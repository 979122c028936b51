#!/usr/bin/env bash
# Lint, types and all tests, in the checkout's own .venv: bash tests/run.sh [pytest arguments]
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd -- "$root"
bash setup.sh dev
export PATH="$root/.venv/bin:$PATH"
ruff check .
ruff format --check .
lint-imports
mypy imagenets command_line evaluation methods demo benchmarks datapreparation
exec python -m pytest -n auto "$@"
