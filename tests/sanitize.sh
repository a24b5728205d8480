#!/usr/bin/env bash
# The tests of the core, the edge and the ASGI door with the address and undefined-behaviour sanitizers. The modules are
# built in a copy of the sources, so that those in place stay as they are. PYTHON chooses the interpreter; arguments go
# to pytest.
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
import importlib, pathlib, sys
built = pathlib.Path("build/sanitize/src/fasthook").resolve()
modules = sorted(path.stem for path in pathlib.Path("src/fasthook").glob("_*.pyx"))
for name in modules:
    file = pathlib.Path(importlib.import_module(f"fasthook.{name}").__file__)
    if file.resolve().parent != built or b"__asan_" not in file.read_bytes() or b"__ubsan_" not in file.read_bytes():
        sys.exit(f"not a module with the sanitizers: {file}")
print(f"with the sanitizers: {', '.join(modules)}")
PY
# The core, and what drives the edge and the ASGI door in this process: bytes of strangers, whole and in pieces.
tests=(tests/core)
for name in connection oracle repeat rows smuggling; do tests+=("tests/edge/test_$name.py"); done
for name in protocol rows mounted; do tests+=("tests/asgi/test_$name.py"); done
exec "$python" -m pytest "${tests[@]}" -q "$@"
