#!/usr/bin/env bash
# Trains on several nodes of a Slurm cluster: one task per node, which takes all GPUs of its node.
#   sbatch --nodes=4 launch/slurm.sh --config=configs/imagenet_vqvae2.py --workdir=/shared/runs/imagenet
# Fill in: partition, account, time and GPUs; and, below, how your cluster finds Python. --workdir must be on a disk that
# all nodes share, or in a bucket. Submit it from the project's folder.
#SBATCH --job-name=kvae
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Before a preemption, and five minutes before the time is up, the run saves itself and goes back into the queue.
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -euo pipefail
# source /path/to/venv/bin/activate

# 75: stopped before its last step. Slurm itself requeues a job that it preempts.
trap 'if [ "$?" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi' EXIT
srun --kill-on-bad-exit=1 python -m kvae.main "$@"
