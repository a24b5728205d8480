#!/usr/bin/env bash
# The core's tests with the address and undefined-behaviour sanitizers. The modules are built in a copy of the sources,
# so that those in place stay as they are. PYTHON chooses the interpreter; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-.venv/bin/python}
[[ $python == */* ]] && python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")

copy=build/sanitize
mkdir -p "$copy"
find "$copy" -name '*.py' -delete # what is gone from the sources is gone from the copy
find src -name '*.so' -prune -o -name '*.c' -prune -o -name '*.html' -prune -o -name __pycache__ -prune \
    -o -type f -print0 | tar --create --null --files-from=- setup.py pyproject.toml README.md LICENSE | tar --extract --directory="$copy"
# -fno-wrapv: the interpreter's own flags say -fwrapv, under which a signed overflow would go unseen.
(cd "$copy" && CFLAGS=-fno-wrapv FASTHOOK_SANITIZE=1 "$python" setup.py --quiet build_ext --inplace)

LD_PRELOAD=$(gcc -print-file-name=libasan.so)
# detect_leaks=0: the interpreter itself keeps memory until the process ends, and would be blamed for it.
# allocator_may_return_null=1: an allocation too large to be had is a MemoryError, as without the sanitizer.
ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
UBSAN_OPTIONS=print_stacktrace=1
# malloc for every object, so that a read past the end of a bytes object is seen.
PYTHONMALLOC=malloc
PYTHONPATH=$root/$copy/src
export LD_PRELOAD ASAN_OPTIONS UBSAN_OPTIONS PYTHONMALLOC PYTHONPATH

"$python" - <<'PY'
import pathlib, sys
import fasthook._core, fasthook._scan
for module in (fasthook._core, fasthook._scan):
    if "build/sanitize" not in pathlib.Path(module.__file__).as_posix():
        sys.exit(f"not the module with the sanitizers: {module.__file__}")
PY
exec "$python" -m pytest tests/core -q "$@"
