#!/bin/sh
# Installs what the tests need and this machine may have: Debian's packages, as root. Otherwise those tests are skipped.
set -eu
missing=""
command -v redis-server >/dev/null || missing="$missing redis-server"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing:$missing"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing; } >/dev/null ||
        echo "could not install:$missing" >&2
else
    echo "NOT INSTALLED, and what needs them is skipped:$missing" >&2
fi
