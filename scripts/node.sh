#!/bin/sh
# Runs a script with the project's own pinned Node (an npm package), whatever Node the machine has.
# Usage: sh scripts/node.sh FILE [ARGS...]
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
case "$(uname -m)" in
  x86_64) arch=x64 ;;
  aarch64 | arm64) arch=arm64 ;;
  *) echo "hostmesh: no pinned Node for $(uname -m); supported: x86_64, aarch64" >&2; exit 1 ;;
esac
node="$root/node_modules/node-linux-$arch/bin/node"
if [ ! -x "$node" ]; then
  echo "hostmesh: the pinned Node is missing; run: npm ci" >&2
  exit 1
fi
PATH="$(dirname "$node"):$root/node_modules/.bin:$PATH"
export PATH
exec "$node" --disable-warning=ExperimentalWarning "$@"
