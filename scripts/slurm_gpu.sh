#!/usr/bin/env bash
# Trains on the GPU nodes of a Slurm cluster, one process for each GPU, through as many time limits as it takes:
#
#   sbatch --nodes=2 scripts/slurm_gpu.sh runs/gpt2 gpt2_124m 'parallel.mesh=(data=2, fsdp=8)'
#
# The first word is the run directory; it, the data and this environment must lie on a disk that all nodes share.
# Submitted again, the run goes on; with another number of nodes, too: then write the parallel.mesh that fits them.
#SBATCH --job-name=lmjax
#SBATCH --ntasks-per-node=8   # the GPUs of a node; JAX gives each process the one of its local number
#SBATCH --gpus-per-node=8
#SBATCH --gpu-bind=none
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600     # seconds before the limit: every process saves at the same update
#SBATCH --requeue             # also after the loss of a node: the run goes on from its newest whole checkpoint
#SBATCH --open-mode=append
set -euo pipefail

run=$1
shift
if [[ -f $run/config.json ]]; then # of the configuration, only the devices may be others now
    words=(--resume "$run")
    for word in "$@"; do
        if [[ $word == parallel.* ]]; then words+=("$word"); fi
    done
else
    words=("$@" --run-dir "$run")
fi

# When one process ends badly Slurm ends the rest; without Slurm they end after parallel.heartbeat_seconds.
srun --kill-on-bad-exit=1 python train.py "${words[@]}" parallel.distributed=true

if grep --quiet '"status": "stopped"' "$run/summary.json"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
