#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU VM slice. It is run on every worker at once, from your own machine:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all \
#     --command="bash kvae/launch/tpu_pod.sh --config=configs/imagenet_vqvae2.py --workdir=gs://BUCKET/runs/imagenet"
# Fill in NAME, ZONE and BUCKET. Before that, once, on all workers in the same way: clone this project into ~/kvae, and
# there `pip install -e '.[gcs]' 'jax[tpu]'`. --workdir may be a folder on a disk that all workers share, too. The data
# must be on such a disk, Filestore for one, or in a bucket that is mounted with gcsfuse on each worker.
# The workers find each other by themselves. If the slice is preempted, create it again and give the same command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec python -m kvae.main "$@"
