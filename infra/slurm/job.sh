#!/bin/bash
# A batch job that goes on where it stood when it was preempted, requeued or near its time limit. docs/slurm.md
#
#SBATCH --job-name=train
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:TERM@90

# A directory that every node has, or a bucket.
export REPRIEVE_STORE=${REPRIEVE_STORE:-file:///shared/snapshots}
# The same after a requeue, and nobody else's.
export REPRIEVE_JOB=slurm-$SLURM_JOB_ID
# What is left between Slurm's SIGTERM and its SIGKILL: the least of GraceTime, KillWait and --signal.
export REPRIEVE_TERM_GRACE=60s
# A node may have several jobs.
export REPRIEVE_WORK_DIR=/run/reprieve-$SLURM_JOB_ID REPRIEVE_CONTROL_SOCKET=/run/reprieve-$SLURM_JOB_ID/control.sock

# Reprieve is PID 1 of a namespace of its own, so that the job's process ids are free on every node.
unshare --fork --kill-child --pid --mount-proc -- reprieve run -- "${@:-./train}" &
job=$!

# Slurm tells this shell, and `unshare` does not pass signals on.
told=
trap 'told=yes; pkill --signal TERM --parent "$job"' TERM
while :; do
    wait "$job"
    code=$?
    # A trap interrupts the wait.
    [[ $told ]] || break
    told=
done

# Nothing is running any more; 75 means stored and stopped. Where slurm.conf has RequeueExit=75 Slurm queues the job again by
# itself. One that was cancelled, or is being requeued, is not RUNNING by now, and stays as it is.
if [[ $code == 75 ]] \
    && ! scontrol show config | grep --quiet --extended-regexp '^RequeueExit +=.*\b75\b' \
    && scontrol show job "$SLURM_JOB_ID" | grep --quiet JobState=RUNNING; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
