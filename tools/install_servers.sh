#!/bin/sh
# Installs what the tests need and this machine may have: Debian's packages, as root. Otherwise those tests are skipped.
# tools/install_servers.sh [PACKAGES, each with a program of its name]
set -eu
missing=""
command -v redis-server >/dev/null || missing="$missing redis-server"
[ -e /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing="$missing rabbitmq-server"
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$missing postgresql"
for name in pgbouncer haproxy "$@"; do # a user's path is without /usr/sbin
    [ -e "/usr/sbin/$name" ] || command -v "$name" >/dev/null || missing="$missing $name"
done
for name in chromium chromedriver prometheus; do
    command -v "$name" >/dev/null || case "$name" in
        chromedriver) missing="$missing chromium-driver" ;;
        *) missing="$missing $name" ;;
    esac
done
[ -e /usr/sbin/sshd ] || missing="$missing openssh-server"
[ -e /usr/sbin/slurmctld ] || missing="$missing slurmctld slurmd slurm-client munge"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "NOT INSTALLED, and what needs them is skipped:$missing" >&2
    exit 0
fi
echo "installing:$missing"
# The tests start servers of their own: the packages are to start none, and to make no database.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
fi
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o Dpkg::Options::=--force-confold $missing; } >/dev/null || echo "could not install:$missing" >&2
