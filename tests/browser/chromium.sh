#!/usr/bin/env bash
# Debian's Chromium for the tests of the page. Needs root where it is not installed yet.
#
#   chromium.sh install           installs it where it is missing
set -euo pipefail

fail() {
  echo "chromium.sh: $*" >&2
  exit 1
}

install() {
  command -v chromium >/dev/null && return
  command -v apt-get >/dev/null || fail "Chromium is not installed, and there is no apt-get to install it with"
  [ "$(id -u)" -eq 0 ] || fail "root is needed to install Chromium"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -q && apt-get install -q -y --no-install-recommends chromium fonts-dejavu-core; } >/tmp/chromium-install.log 2>&1 ||
    fail "apt-get could not install chromium: $(grep -m1 '^E:' /tmp/chromium-install.log || true)"
}

case ${1:-} in
  install) install ;;
  *) fail "use: chromium.sh install" ;;
esac
