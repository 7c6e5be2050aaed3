#!/usr/bin/env bash
# A SLURM of one machine, for tests: slurm.sh start FOLDER, source FOLDER/env.sh, slurm.sh stop FOLDER.
# All state is in FOLDER, nothing listens beyond 127.0.0.1, no systemd.
# Its node claims 4 processors whatever there are, and two GPUs that stand for no device.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
action=$1
folder=$(realpath -m "$2")
export SLURM_CONF=$folder/slurm.conf

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() {
    mkdir -p "$folder"/{state,spool,munge,bin}
    chmod 755 "$folder" "$folder/munge"
    local name user
    name=$(hostname -s)
    user=$(id -un)
    # Batch jobs that are requeued wait for cred_expire. No plugin that needs control groups.
    cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$name(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=20
MinJobAge=300
ReturnToService=2
MpiDefault=none
GresTypes=gpu
NodeName=$name NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes=$name Default=YES
PartitionName=gpu Nodes=$name
CONF
    printf "Name=gpu File=%s\n" /dev/null /dev/zero > "$folder/gres.conf"
    # Within a job Snakemake's plugin drops SLURM_CONF from the environment of srun.
    printf '#!/bin/sh\nSLURM_CONF=%q exec %q "$@"\n' "$SLURM_CONF" "$(command -v srun)" \
        > "$folder/bin/srun"
    chmod +x "$folder/bin/srun"
    printf 'export SLURM_CONF=%q PATH=%q:"$PATH"\n' "$SLURM_CONF" "$folder/bin" > "$folder/env.sh"
    (umask 077 && head -c 1024 /dev/urandom > "$folder/munge/key")
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
        --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" \
        --seed-file="$folder/munge/seed"
    slurmctld
    slurmd
    for _ in $(seq 60); do
        if sinfo --noheader --format=%t 2>/dev/null | grep -qx idle; then
            sinfo
            return
        fi
        sleep 0.5
    done
    echo "error: the node is not idle after 30 s, see the logs in $folder" >&2
    stop
    exit 1
}

# Jobs first, then the daemons, by their own pid files, also when they do not answer any more.
stop() {
    local pid file
    timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
    for _ in $(seq 40); do
        [ -n "$(timeout 5 squeue --noheader 2>/dev/null || true)" ] || break
        sleep 0.5
    done
    for file in slurmd.pid slurmctld.pid munge/pid; do
        [ -s "$folder/$file" ] || continue
        pid=$(cat "$folder/$file")
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 40); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.25
        done
        kill -KILL "$pid" 2>/dev/null || true
    done
}

"$action"
