#!/bin/sh
# Installs Consul 1.8.7, which is in Debian's bullseye and in no later suite; for scripts/setup.sh, as root.
# The pin keeps that suite from ever replacing or adding any other package of this machine.
set -eu
scripts=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
source=/etc/apt/sources.list.d/hostmesh-bullseye.sources
pin=/etc/apt/preferences.d/hostmesh-bullseye

is_offered() { LC_ALL=C apt-cache policy consul 2>/dev/null | grep -q 'Candidate: [0-9]'; }

add_source() {
  # On bullseye itself the pin would lame the machine's own suite, and is not needed.
  if grep -q '^VERSION_CODENAME=bullseye' /etc/os-release; then apt-get update -q; return; fi
  stanza=$(sh "$scripts/node.sh" "$scripts/setup/apt-source.ts") || return 1
  cat >"$source" <<SOURCE || return 1
# Written by hostmesh scripts/setup.sh: Consul, and nothing else, comes from this suite.
# Remove it together with $pin.
$stanza
SOURCE
  cat >"$pin" <<'PIN' || return 1
# Written by hostmesh scripts/setup.sh. Never install anything but consul from bullseye.
Package: *
Pin: release n=bullseye
Pin-Priority: 1

Package: consul
Pin: release n=bullseye
Pin-Priority: 990
PIN
  apt-get update -q -o "Dir::Etc::sourcelist=$source" -o Dir::Etc::sourceparts=- \
    -o APT::Get::List-Cleanup=0
}

if ! is_offered; then
  if ! add_source || ! is_offered; then
    rm -f "$source" "$pin"
    echo 'the Debian source of this machine does not offer the package consul in suite bullseye'
    exit 1
  fi
fi
sh "$scripts/setup/apt-install.sh" consul
consul version
