#!/bin/sh
# Makes the tree that test machines boot from, of this machine's own suite and mirror: sh make-machine-root.sh FOLDER PACKAGES
# PACKAGES is what they have beside Debian's least, with commas. Machines never write to the tree.
set -eu
root=$1
packages=$2
scripts=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cache="$(dirname -- "$root")/packages"

# shellcheck disable=SC1091 # a file of the machine
codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
stanza=$(sh "$scripts/node.sh" "$scripts/setup/apt-source.ts")
mirror=$(printf '%s\n' "$stanza" | sed -n 's/^URIs: *\([^ ]*\).*/\1/p')
keyring=$(printf '%s\n' "$stanza" | sed -n 's/^Signed-By: *\(\/[^ ]*\).*/\1/p')
set -- --variant=minbase "--include=$packages" "--cache-dir=$cache"
if [ -n "$keyring" ]; then set -- "$@" "--keyring=$keyring"; fi
if printf '%s\n' "$stanza" | grep -qi '^Trusted: *yes'; then set -- "$@" --no-check-gpg; fi
mkdir -p "$cache"
# Once more: of some two hundred downloads a busy mirror may fail one. What was fetched is not fetched again.
for attempt in 1 2; do
  rm -rf "$root" "$root.new"
  if debootstrap "$@" "$codename" "$root.new" "$mirror"; then break; fi
  tail -n 5 "$root.new/debootstrap/debootstrap.log" 2>/dev/null || true
  [ "$attempt" = 1 ] || exit 1
done
rm -rf "$cache"
# A test starts the firewall it wants, no machine does; and nobody needs sessions with a manager of their own.
sed -i '/pam_systemd/d' "$root.new/etc/pam.d/common-session"
rm -f "$root.new"/etc/systemd/system/*/ufw.service "$root.new"/etc/systemd/system/*/firewalld.service
# Each machine makes its own at its first boot, and none needs the downloaded packages.
: >"$root.new/etc/machine-id"
rm -rf "$root.new/var/cache/apt/archives" "$root.new/var/lib/apt/lists"
echo "$packages" >"$root.new/etc/hostmesh-test-machine"
mv "$root.new" "$root"
