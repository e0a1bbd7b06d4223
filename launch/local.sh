#!/usr/bin/env bash
# Trains on all devices of this machine.
#   bash launch/local.sh --config=configs/photos_vqvae.py
# To resume, run the same command again. To use only some GPUs, put for example CUDA_VISIBLE_DEVICES=0,1 before it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec python -m kvae.main "$@"
