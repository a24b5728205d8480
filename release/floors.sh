#!/usr/bin/env bash
# What coverage.sh has counted, held to the floor of pyproject.toml: Cython and Python each for itself, and each of the
# compiled modules is among it. To be run where .coverage is; PYTHON chooses the interpreter.
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
status=0
for kind in pyx py; do
    echo "lines of *.$kind:"
    report=$("$python" -m coverage report --include="*.$kind" --skip-covered) || status=1
    echo "$report"
done
"$python" - <<'PY' || status=1
import pathlib
import sys

import coverage

counted = coverage.Coverage()
counted.load()
files = {pathlib.Path(name).name for name in counted.get_data().measured_files() if counted.get_data().lines(name)}
missing = sorted({path.name for path in pathlib.Path("src/fasthook").glob("_*.pyx")} - files)
sys.exit(f"no line was counted of {', '.join(missing)}" if missing else 0)
PY
exit $status
