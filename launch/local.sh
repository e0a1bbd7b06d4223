#!/usr/bin/env bash
# Trains on this machine, on all of its devices.
#   bash launch/local.sh --config=configs/photos_vqvae.py
# To resume, run the same command again. To use some of the GPUs, put CUDA_VISIBLE_DEVICES=0,1 before it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec python -m kvae.main "$@"
