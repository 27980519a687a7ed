#!/bin/sh
# Runs a script with the project's own pinned Node (an npm package), whatever Node the machine has.
# Usage: sh scripts/node.sh [NODE OPTIONS...] FILE [ARGS...]
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
case "$(uname -m)" in
  x86_64) arch=x64 ;;
  aarch64 | arm64) arch=arm64 ;;
  *)
    echo "hostmesh: no pinned Node for $(uname -m); supported: x86_64, aarch64" >&2
    exit 1
    ;;
esac
# In a checkout the packages are inside; installed as a package itself, npm may put them beside it.
for modules in "$root/node_modules" "$root/.."; do
  node="$modules/node-linux-$arch/bin/node"
  if [ -x "$node" ]; then break; fi
done
if [ ! -x "$node" ]; then
  echo "hostmesh: the pinned Node is missing (npm package node-linux-$arch); run: npm ci" >&2
  exit 1
fi
# Debian keeps iptables and its like out of an ordinary user's PATH.
PATH="$(dirname -- "$node"):$root/node_modules/.bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export PATH
exec "$node" --disable-warning=ExperimentalWarning "$@"
