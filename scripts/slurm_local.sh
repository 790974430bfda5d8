#!/usr/bin/env bash
# A Slurm of three nodes on this machine, with accounting, from Debian's packages; for tests.
#   scripts/slurm_local.sh up     install what is missing, start it, wait until its nodes are idle;
#                                 ends with 77 where it cannot be installed
#   scripts/slurm_local.sh down   stop it and remove its files
#   scripts/slurm_local.sh with COMMAND ...   the command between the two
# As root, without systemd; everything listens on the loopback address. Clients, submitit among them,
# find it by SLURM_CONF=/var/lib/slurm_local/slurm.conf.
set -euo pipefail

state=${SLURM_LOCAL:-/var/lib/slurm_local}
conf=$state/slurm.conf
nodes="node1 node2 node3"
packages="slurm-wlm slurmdbd mariadb-server munge"
export SLURM_CONF=$conf

fail() {
    echo "slurm_local.sh: $*" >&2
    exit "${code:-1}"
}

install_packages() {
    command -v slurmctld slurmd slurmdbd mariadbd munged sacct >/dev/null && return
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $packages; } >/dev/null 2>&1 ||
        code=77 fail "cannot install Debian's packages $packages"
}

write_settings() {
    local host cpus memory
    host=$(hostname)
    cpus=$(nproc --all)
    memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
    mkdir -p "$state"/{db,controller,log}
    # Three nodes share the processors and the memory that there are; that is enough to test with.
    cat >"$conf" <<EOF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=17100
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=5
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/%n
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/%n.pid
SlurmctldLogFile=$state/log/slurmctld
SlurmdLogFile=$state/log/%n
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=17101
JobAcctGatherType=jobacct_gather/linux
NodeName=node[1-3] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17003] CPUs=$cpus RealMemory=$memory
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
    cat >"$state/slurmdbd.conf" <<EOF
AuthType=auth/munge
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=17101
SlurmUser=root
PidFile=$state/slurmdbd.pid
LogFile=$state/log/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=17010
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
EOF
    chmod 600 "$state/slurmdbd.conf"
}

start_munge() {
    # With a socket of one's own sacct would not find it.
    mkdir -p /run/munge
    chown munge: /run/munge
    [ -s /etc/munge/munge.key ] || runuser -u munge -- mungekey --create
    pgrep -x munged >/dev/null && return
    runuser -u munge -- munged
    cp /run/munge/munged.pid "$state/munged.pid" # to be stopped too
}

start_database() {
    [ -d "$state/db/mysql" ] || mariadb-install-db --user=root --datadir="$state/db" \
        --auth-root-authentication-method=normal >"$state/log/mariadb" 2>&1
    mariadbd --no-defaults --user=root --datadir="$state/db" --socket="$state/mariadb.sock" \
        --port=17010 --bind-address=127.0.0.1 --pid-file="$state/mariadb.pid" \
        >>"$state/log/mariadb" 2>&1 &
    wait_for "the database" mariadb --no-defaults -S "$state/mariadb.sock" -e "
        CREATE DATABASE IF NOT EXISTS slurm_acct_db;
        CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
        CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED BY 'slurm';
        GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1';
        GRANT ALL ON slurm_acct_db.* TO slurm@localhost"
}

start_slurm() {
    # It looks for its settings beside slurm.conf.
    slurmdbd
    wait_for "accounting" sacctmgr -n list cluster
    sacctmgr -i add cluster local >/dev/null || true
    slurmctld -c -f "$conf"
    for node in $nodes; do
        slurmd -f "$conf" -N "$node"
    done
    wait_for "three idle nodes" eval '[ "$(sinfo -h -N -t idle | wc -l)" = 3 ]'
}

wait_for() {
    local what=$1
    shift
    for _ in $(seq 60); do
        "$@" >/dev/null 2>&1 && return
        sleep 1
    done
    fail "$what did not start; see $state/log"
}

up() {
    [ "$(id -u)" = 0 ] || code=77 fail "up: needs root"
    [ ! -e "$conf" ] || fail "$state is there; take it down first"
    install_packages
    trap down EXIT  # of a start that fails nothing stays
    write_settings
    start_munge
    start_database
    start_slurm
    trap - EXIT
    sinfo -N
    echo "export SLURM_CONF=$conf"
}

down() {
    [ -e "$conf" ] || fail "$state is not there; nothing to take down"
    scancel --state=PENDING --quiet 2>/dev/null || true
    scancel --state=RUNNING --quiet 2>/dev/null || true
    for name in $nodes slurmctld slurmdbd mariadb munged; do
        stop "$state/$name.pid"
    done
    rm -rf "$state"
}

stop() {
    local pid
    [ -s "$1" ] || return 0
    pid=$(cat "$1")
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 30); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 1
    done
    kill -9 "$pid" 2>/dev/null || true
}

with() {
    up
    trap down EXIT
    "$@"
}

action=${1:-}
case $action in
up | down) "$action" ;;
with) with "${@:2}" ;;
*) fail "give up, down, or with COMMAND" ;;
esac
