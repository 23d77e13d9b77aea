#!/usr/bin/env bash
# Trains on all hosts of a TPU slice; to be called from this folder, where gcloud is set up:
#
#   TPU=my-v5e-64 ZONE=us-west4-a scripts/tpu_pod.sh /mnt/shared/runs/gpt2 gpt2_124m 'parallel.mesh=(data=4, fsdp=16)'
#
# The first word is the run directory, on a disk that all hosts have mounted (Filestore, say), as are the data. Called
# again, the run goes on; on another slice, too: then write the parallel.mesh that fits it.
set -euo pipefail

run=$1
shift
python=${PYTHON:-python3.11} # lmjax needs 3.11 to 3.13; images of TPUs may have an older python3
ssh() { gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker="$1" --command="$2"; }

# The same code on every host: what git knows of this folder.
git archive --format=tar.gz --output=/tmp/lmjax.tar.gz HEAD
gcloud compute tpus tpu-vm scp /tmp/lmjax.tar.gz "$TPU":/tmp/lmjax.tar.gz --zone "$ZONE" --worker=all
ssh all "mkdir -p lmjax && tar xzf /tmp/lmjax.tar.gz -C lmjax && $python -m pip install --quiet -e './lmjax[tpu]'"

if ssh 0 "test -f $(printf %q "$run")/config.json"; then # of the configuration, only the devices may be others now
    words=(--resume "$run")
    for word in "$@"; do
        if [[ $word == parallel.* ]]; then words+=("$word"); fi
    done
else
    words=("$@" --run-dir "$run")
fi

# One process on each host, which stays when the connection ends; the hosts find each other.
train="$python train.py $(printf '%q ' "${words[@]}") parallel.distributed=true"
ssh all "cd lmjax && { setsid nohup $train > train.log 2>&1 < /dev/null & echo \$! > train.pid; }"

cat <<EOF
to follow the run: gcloud compute tpus tpu-vm ssh $TPU --zone $ZONE --worker=0 --command='tail -f lmjax/train.log'
to stop it, saved (a signal to one host is one to all):
                   gcloud compute tpus tpu-vm ssh $TPU --zone $ZONE --worker=0 --command='kill \$(cat lmjax/train.pid)'
EOF
