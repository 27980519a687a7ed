#!/bin/sh
# Builds a current Consul from its Go module, for the tests of `npm run test:interop`:
#
#   sh scripts/build-consul.sh SUMS OUTPUT
#
# SUMS pins Consul and its own submodules, in the format of go.sum; all other modules are pinned by
# Consul's own go.sum. Modules come through GOPROXY, whatever it is. It takes minutes, so it is nice.
set -eu

sums=$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")
output=$2
module=github.com/hashicorp/consul

work=$(mktemp -d "$(dirname -- "$output")/build.XXXXXX")
# The copy has the read-only modes of the module cache until chmod.
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
cd "$work"

# The checksum database does not know the submodules: ours are the sums that count. GOTOOLCHAIN, because
# what builds should be what the set-up has looked at.
export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off GOFLAGS=-mod=readonly
export GONOSUMDB="$module,$module/*"

# json_text KEY FILE: the text of a key of `go mod download -json`, which has one a line.
json_text() { sed -n "s/^[[:space:]]*\"$1\": \"\(.*\)\",\{0,1\}\$/\1/p" "$2"; }

# pinned MODULE VERSION: the sum that the file has for it.
pinned() { awk -v m="$1" -v v="$2" '$1 == m && $2 == v { print $3 }' "$sums"; }

awk '$2 !~ /\/go\.mod$/ { print $1, $2 }' "$sums" >modules
while read -r path version; do
  echo "Downloading $path $version"
  go mod download -json "$path@$version" >answer.json || { cat answer.json; exit 1; }
  for pair in "Sum $version" "GoModSum $version/go.mod"; do
    got=$(json_text "${pair%% *}" answer.json)
    wanted=$(pinned "$path" "${pair#* }")
    if [ "$got" != "$wanted" ] || [ -z "$got" ]; then
      echo "Module $path ${pair#* } has sum '$got', but '$wanted' is pinned in $sums"
      exit 1
    fi
  done
  if [ "$path" = "$module" ]; then json_text Dir answer.json >source; fi
done <modules

cp -R "$(cat source)" tree
chmod -R u+w tree
cd tree
# In the repository the submodules are folders; here they are modules of their own, and pinned.
while read -r path version; do
  if [ "$path" != "$module" ]; then go mod edit -dropreplace="$path" -require="$path@$version"; fi
done <../modules
awk -v m="$module" '$1 != m' "$sums" >>go.sum
nice -n 10 go build -v -trimpath -ldflags '-s -w' -o ../consul .
../consul version
mv ../consul "$output"
