#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU VM slice. Start it on every worker at once, from your own machine:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all \
#     --command="bash kvae/launch/tpu_pod.sh --config=configs/imagenet_vqvae2.py --workdir=gs://BUCKET/runs/imagenet"
# Fill in NAME, ZONE and BUCKET. Before the first run, clone this project into ~/kvae on all workers, and run there
# `pip install -e '.[train,gcs]' 'jax[tpu]'`. --workdir may also be on a disk that all workers share. The data must be
# on such a disk (for example Filestore), or in a bucket mounted with gcsfuse on each worker.
# The workers find each other. If the slice is preempted, create it again and run the same command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec python -m kvae.main "$@"
