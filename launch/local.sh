#!/usr/bin/env bash
# Trains on this machine, with all of its devices.
#   bash launch/local.sh --config=configs/photos_vqvae.py
# Run the same command again and it goes on where it stopped. To use some of the GPUs: CUDA_VISIBLE_DEVICES=0,1 in front.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec python -m kvae.main "$@"
