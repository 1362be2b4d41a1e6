#!/usr/bin/env bash
# Build the images, start the demo in containers, see frames flow, in the clear and over TLS, and
# take it all down again; prints what it measured.
#
#     docker/check.sh
#
# Where builds reach the network only as the host does: SPLITPOINT_BUILD_NETWORK=host docker/check.sh
# Wheels in a folder named by PIP_FIND_LINKS are offered to the build over loopback.
set -euo pipefail
cd "$(dirname "$0")/.."

# Of an image on the published python:3.11-slim, which has about 130 MB of it.
EDGE_MB=400 CLOUD_MB=700 BASE_MB=130
WAIT_S=180
export SPLITPOINT_CLOUD_PORT=${SPLITPOINT_CLOUD_PORT:-18080}
export SPLITPOINT_EDGE_PORT=${SPLITPOINT_EDGE_PORT:-18081}
# Enough for a bundle, not for a good one.
export SPLITPOINT_SEARCH_EFFORT=${SPLITPOINT_SEARCH_EFFORT:-quick}

scratch=$(mktemp -d)
override=$scratch/override.yml
files=(-p splitpoint-check -f docker-compose.yml -f "$override")
wheels=

clean_up() {
    status=$?
    if [ $status -ne 0 ]; then
        docker compose "${files[@]}" logs --tail 15 || true
    fi
    docker compose "${files[@]}" -f compose.tls.yml down --volumes --timeout 10 > /dev/null 2>&1 || true
    [ -z "$wheels" ] || kill "$wheels" 2> /dev/null || true
    rm -rf "$scratch"
    exit $status
}
trap clean_up EXIT
trap 'exit 130' INT TERM

fail() {
    echo "docker/check.sh: $*" >&2
    exit 1
}

write_override() {
    echo "services: {}" > "$override"
    [ -n "${SPLITPOINT_BUILD_NETWORK:-}" ] || return 0
    local arguments="{}" port
    if [ -d "${PIP_FIND_LINKS:-}" ]; then
        port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
        python3 -m http.server --bind 127.0.0.1 --directory "$PIP_FIND_LINKS" "$port" > /dev/null 2>&1 &
        wheels=$!
        arguments="{PIP_FIND_LINKS: 'http://127.0.0.1:$port/', TORCH_INDEX: ''}"
    fi
    cat > "$override" << END
services:
  prepare:
    build: {network: $SPLITPOINT_BUILD_NETWORK, args: $arguments}
    network_mode: $SPLITPOINT_BUILD_NETWORK
  cloud:
    build: {network: $SPLITPOINT_BUILD_NETWORK}
  edge:
    build: {network: $SPLITPOINT_BUILD_NETWORK}
END
}

metric() { # PORT NAME: the sum over all labels
    python3 - "$1" "$2" << 'END'
import re, sys, urllib.request
port, name = sys.argv[1:]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
text = opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
print(sum(float(v) for v in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))
END
}

await_frames() { # until the edge has served, and the cloud heard of, this many frames
    local wanted=$1 deadline=$((SECONDS + WAIT_S)) edge cloud
    while :; do
        edge=$(metric "$SPLITPOINT_EDGE_PORT" splitpoint_edge_frames_total 2> /dev/null || echo 0)
        cloud=$(metric "$SPLITPOINT_CLOUD_PORT" 'splitpoint_cloud_(?:frames|reports)_total' 2> /dev/null || echo 0)
        if [ "${edge%.*}" -ge "$wanted" ] && [ "${cloud%.*}" -ge "$wanted" ]; then
            echo "frames: ${edge%.*} by the edge, ${cloud%.*} known to the cloud"
            return
        fi
        [ $SECONDS -lt $deadline ] || fail "no frames after $WAIT_S s: edge $edge, cloud $cloud"
        sleep 1
    done
}

check_size() { # SERVICE LIMIT_MB
    local size base mb over
    size=$(docker image inspect --format '{{.Size}}' "splitpoint-$1")
    base=$(docker image inspect --format '{{.Size}}' python:3.11-slim 2> /dev/null || echo $((BASE_MB * 1000000)))
    mb=$((size / 1000000)) over=$(((size - base) / 1000000))
    echo "$1: image of $mb MB, $over MB over its base"
    [ $((over + BASE_MB)) -le "$2" ] || fail "$1: more than $2 MB on the published base"
}

check_service() { # SERVICE: runs as nobody special, cannot write, has no torch
    local user
    user=$(docker compose "${files[@]}" exec -T "$1" id -u)
    [ "$user" != 0 ] || fail "$1 runs as root"
    ! docker compose "${files[@]}" exec -T "$1" touch /opt/splitpoint/x 2> /dev/null || fail "$1 can write"
    ! docker compose "${files[@]}" exec -T "$1" python -c "import torch" 2> /dev/null || fail "$1 has torch"
    echo "$1: user $user, read-only, no torch"
}

write_override
started=$SECONDS
docker compose "${files[@]}" build > "$scratch/build.log" 2>&1 \
    || { tail -n 40 "$scratch/build.log" >&2; fail "the images cannot be built"; }
echo "built in $((SECONDS - started)) s"
check_size edge $EDGE_MB
check_size cloud $CLOUD_MB
started=$SECONDS
docker compose "${files[@]}" up --detach --wait --no-build > "$scratch/up.log" 2>&1 \
    || { cat "$scratch/up.log" >&2; fail "it did not start"; }
echo "up and healthy in $((SECONDS - started)) s, search included"
await_frames 20
check_service edge
check_service cloud
docker compose "${files[@]}" logs --no-log-prefix --tail 1 edge
plain=$(python3 -c 'import sys, json, urllib.request as u
o = u.build_opener(u.ProxyHandler({}))
rows = json.load(o.open(f"http://127.0.0.1:{sys.argv[1]}/v1/tables"))["rows"]
print(len(rows))' "$SPLITPOINT_CLOUD_PORT")
[ "$plain" -gt 0 ] || fail "no rows under /v1/tables"
echo "/v1/tables: $plain rows"

files+=(-f compose.tls.yml)
docker compose "${files[@]}" up --detach --wait --no-build > "$scratch/up.log" 2>&1 \
    || { cat "$scratch/up.log" >&2; fail "it did not start"; }
await_frames 10
echo "the same over TLS"
docker compose "${files[@]}" down --volumes --timeout 10 > /dev/null 2>&1
echo "taken down"
