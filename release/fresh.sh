#!/usr/bin/env bash
# The README's commands as a newcomer has them: a clone of HEAD, an empty home, nothing cached, and on the PATH only what
# Debian has in /usr/bin and /bin. FRESH_PYTHON chooses the interpreter (default: the first python3 there).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
git clone --quiet "$root" "$home/fasthook"

alone() { (cd "$home/fasthook" && env -i HOME="$home" PATH=/usr/bin:/bin LANG=C.UTF-8 PIP_NO_CACHE_DIR=1 "$@"); }
python=${FRESH_PYTHON:-python3}

alone make build PYTHON="$python"
# FRESH_TESTS=tests/core: a part, where all of them take too long
if [ -n "${FRESH_TESTS:-}" ]; then alone .venv/bin/python -m pytest -q "$FRESH_TESTS"; else alone make test PYTHON="$python"; fi
echo "make test: as it should be"

# make demo: the server says a curl line; what it does is done here
set -m # the server gets a process group, to be ended with
alone make demo PYTHON="$python" >"$home/demo" 2>&1 &
server=$!
set +m
trap 'kill -- -$server 2>/dev/null || true; wait $server 2>/dev/null || true; rm -rf "$home"' EXIT
for _ in $(seq 600); do
    grep -q 'curl ' "$home/demo" && break
    kill -0 $server 2>/dev/null || { cat "$home/demo"; exit 1; }
    sleep 0.1
done
line=$(grep -o -m1 'curl .*' "$home/demo")
status=$(eval "$line -s -o $home/answer -w '%{http_code}'")
grep -q '^HTTP/1.1 200' "$home/answer" || { echo "make demo: the curl line got ${status:-nothing}"; cat "$home/demo"; exit 1; }
echo "make demo: the curl line got 200"
