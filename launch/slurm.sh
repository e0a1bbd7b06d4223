#!/usr/bin/env bash
# Trains on several nodes of a Slurm cluster. Each node runs one task with all its GPUs.
#   sbatch --nodes=4 launch/slurm.sh --config=configs/imagenet_vqvae2.py --workdir=/shared/runs/imagenet
# First fill in partition, account, time and GPUs, and the line below that activates Python on your cluster. Submit the
# job from the project's folder. --workdir must be on a disk that all nodes share, or in a bucket.
#SBATCH --job-name=kvae
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Before a preemption, and five minutes before the time limit, the run saves a checkpoint and the job is requeued.
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -euo pipefail
# source /path/to/venv/bin/activate

# Status 75 means that the run stopped before its last step. After a preemption or node failure, Slurm itself requeues.
trap 'if [ "$?" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi' EXIT
srun --kill-on-bad-exit=1 python -m kvae.main "$@"
