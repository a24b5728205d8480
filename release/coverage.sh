#!/usr/bin/env bash
# Coverage of Python and Cython lines, of subprocesses as well. The modules are built with line tracing in a copy of the
# sources, so that those in place stay quick. PYTHON chooses the interpreter, PROCESSES how many run the tests;
# arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[[ $python == */* ]] && python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")

copy=build/coverage
mkdir -p "$copy"
find "$copy" \( -name '*.py' -o -name '.coverage*' \) -delete # what is gone from the sources is gone from the copy
find src tests examples bench release fuzz docs deploy .github \( -name '*.so' -o -name '*.c' -path 'src/*' -o -name '*.html' -o -path 'bench/out' -o -name node_modules \
    -o -name __pycache__ \) -prune -o -type f -print0 |
    tar --create --null --files-from=- setup.py pyproject.toml Makefile README.md CHANGELOG.md CONTRIBUTING.md LICENSE | tar --extract --directory="$copy"
cd "$copy"
# The C names its sources as they are seen from where it is made. Seen from here, processes elsewhere would not find them.
directives=$("$python" -c '
import ast
tree = ast.parse(open("setup.py").read())
found = [one.value for one in tree.body if isinstance(one, ast.Assign) and one.targets[0].id == "DIRECTIVES"]
print(*(f"-X {name}={value}" for name, value in ast.literal_eval(found[0]).items()))')
(cd / && "$python" -m cython $directives -X linetrace=True "$OLDPWD"/src/fasthook/_*.pyx)
FASTHOOK_TRACE=1 "$python" setup.py --quiet build_ext --inplace

export PYTHONPATH=$PWD/src COVERAGE_CORE=ctrace
# What takes minutes and reaches no line that others don't: the guard of speed, kills by the hundred, and processes that
# import whole libraries under a tracer (tests/test_adapters.py and tests/e2e/test_migrating.py have their adapters).
slow=()
for name in shipping/test_guard e2e/test_kill e2e/test_libraries; do slow+=(--ignore "tests/$name.py"); done
# These hold the edge to deadlines and megabytes that it does not keep while each of its lines is traced.
slow+=(--ignore tests/edge/test_slow_clients.py --deselect tests/edge/test_connection.py::test_chunks_of_one_byte)
status=0
"$python" -m coverage run -m pytest -q -n "${PROCESSES:-3}" --maxschedchunk 2 --timeout 1200 "${slow[@]}" "$@" || status=$?
"$python" -m coverage combine --quiet
# --fail-under=0: the pages are for the run that is below the floor, too
"$python" -m coverage html --quiet --fail-under=0
PYTHON=$python bash release/floors.sh || status=1
exit $status
