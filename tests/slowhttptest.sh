#!/usr/bin/env bash
# slowhttptest in its three modes against a server of its own on loopback: slow heads, slow bodies, answers unread.
# Each ends by itself; the server must answer a good request at the end of each.
set -euo pipefail
command -v slowhttptest >/dev/null || { echo "slowhttptest is not installed: on Debian, apt install slowhttptest"; exit 1; }

fasthook=$(realpath "$1")
port=$((20000 + RANDOM % 20000))
here=$(mktemp -d)
cd "$here"
printf 'async def handler(update):\n    pass\n' >bot.py
"$fasthook" run bot:handler --port "$port" --secret slow-secret --header-timeout 5 --body-timeout 5 2>server.log &
server=$!
trap 'kill "$server"; wait "$server" || true; rm -rf "$here"' EXIT
url="http://127.0.0.1:$port/webhook"
for _ in $(seq 100); do curl -s -o /dev/null "$url" && break; sleep 0.1; done

answers() {
    code=$(curl -s -m 5 -o /dev/null -w '%{http_code}' "$url" -H 'X-Telegram-Bot-Api-Secret-Token: slow-secret' \
        -d "{\"update_id\":$RANDOM$RANDOM,\"message\":{}}")
    [ "$code" = 200 ] || { echo "$1: a good request got $code"; exit 1; }
    echo "$1: good requests are answered"
}
slowhttptest -c 500 -H -i 1 -r 200 -l 15 -u "$url" -p 3 >/dev/null & wait $! || true; answers "slow heads"
slowhttptest -c 500 -B -i 1 -r 200 -s 8192 -l 15 -u "$url" -t POST -p 3 >/dev/null & wait $! || true; answers "slow bodies"
slowhttptest -c 500 -X -r 200 -w 1 -y 2 -n 5 -z 1 -k 3 -l 15 -u "$url" -p 3 >/dev/null & wait $! || true; answers "unread answers"
