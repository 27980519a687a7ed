#!/bin/sh
# Puts the server of Prometheus 2.24.1 (Debian's suite bullseye) at the path that is given; for scripts/setup.sh.
#
# Later suites build theirs without service discovery by Consul. Only the one program is taken out of the package, and apt
# is given lists of its own for that: this machine's sources, packages and priorities stay as they are.
set -eu
target=$1
scripts=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# For apt's own user, which fetches.
chmod 755 "$work"
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/package" "$(dirname "$target")"
sh "$scripts/node.sh" "$scripts/setup/apt-source.ts" >"$work/bullseye.sources"

fetch() {
  apt-get -q -o "Dir::Etc::sourcelist=$work/bullseye.sources" -o Dir::Etc::sourceparts=- \
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
    -o "Dir::State::lists=$work/lists" -o Dir::State::status=/dev/null -o "Dir::Cache::archives=$work/archives" \
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@"
}

cd "$work"
fetch update
fetch download prometheus
dpkg-deb -x prometheus_*.deb package
install -m 755 package/usr/bin/prometheus "$target"
"$target" --version
