#!/bin/sh
# Installs Debian packages and nothing that they only recommend; asks nothing and waits for whoever holds the lock of dpkg.
exec env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l \
  apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
