#!/usr/bin/env bash
# Trains the tables that are too long for a CPU, on one GPU, in pieces of at most nine minutes.
#   bash launch/gpu_evidence.sh runs/gpu
# Run the same command until its status is not 75, which means that something is left; 0 means that nothing failed. The
# folder holds all state: on a machine that forgets, copy it out after each piece and in before the next.
# configs/wallpapers_vqvae.py says how to get the pictures.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
runs=${1:?name the folder of the runs, such as runs/gpu}
deadline=$((SECONDS + ${SECONDS_PER_PIECE:-500}))
failed=0

piece() {
    status=0
    timeout --signal=TERM "$((deadline - SECONDS > 1 ? deadline - SECONDS : 1))" python "$@" || status=$?
    if [ "$status" -eq 124 ]; then exit 75; elif [ "$status" -ne 0 ]; then failed=$status; fi
}

# Table 3 at the paper's length and batch size.
piece launch/sweep.py --table=3 --dataset=folder --seeds=5 --runs="$runs" \
    --config.steps=30000 --config.batch_size=256 --config.evaluate_every_steps=1000
# VQ-VAE-2 at 256 px, with and without the map.
piece -m kvae.main --config=configs/wallpapers_vqvae2.py --workdir="$runs/vqvae2_map"
piece -m kvae.main --config=configs/wallpapers_vqvae2.py --workdir="$runs/vqvae2_ema" \
    --config.model.quantizer.neighborhood=none
# All quantisers at 65,536 codes.
piece launch/sweep.py --table=quantizers --codes=65536 --dataset=folder --seeds=3 --runs="$runs/65536" \
    --config.steps=10000
exit "$failed"
