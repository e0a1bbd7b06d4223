#!/usr/bin/env bash
# Trains on several nodes of a Slurm cluster: one task a node, which uses all GPUs of its node.
#   sbatch --nodes=4 launch/slurm.sh --config=configs/imagenet_vqvae2.py --workdir=/shared/runs/imagenet
# Submit it from the project's folder. First fill in partition, account, time and GPUs, and, below, how to activate
# Python on your cluster. --workdir must be on a disk that all nodes share, or in a bucket.
#SBATCH --job-name=kvae
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# At a preemption, and five minutes before the time limit, the run saves a checkpoint and the job is requeued.
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -euo pipefail
# source /path/to/venv/bin/activate

# Status 75 means: stopped before the last step. After a preemption or a node failure Slurm requeues the job itself.
trap 'if [ "$?" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi' EXIT
srun --kill-on-bad-exit=1 python -m kvae.main "$@"
