"""Arrays for figures, and a reader of drawn figures."""

import numpy as np
from PIL import Image

from kvae.plots.curves import draw_training_curves

RANDOM = np.random.default_rng(0)


def photos(*shape):
    return RANDOM.integers(0, 256, (*shape, 3), np.uint8)


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def rows(value, valid_every=2):
    """Rows as in metrics.jsonl, with `value(step)` as every metric."""
    train = ("train/loss", "train/reconstruction_loss", "train/commitment_loss", "train/perplexity")
    valid = ("valid/loss", "valid/reconstruction_loss", "valid/psnr", "valid/perplexity", "valid/codes_used")
    return [
        {"step": step} | {name: value(step) for name in (train if step % valid_every else train + valid)}
        for step in range(1, 9)
    ]


PANELS = [
    ("Loss", "loss", [("", "loss")]),
    ("Losses", "squared error", [("reconstruction", "reconstruction_loss"), ("commitment", "commitment_loss")]),
    ("Reconstruction quality", "PSNR (dB)", [("", "psnr")]),
    ("Perplexity", "codes", [("", "perplexity"), ("top", "perplexity_top"), ("bottom", "perplexity_bottom")]),
    ("Selectivity", "share", [("", "neural_selectivity")]),
]


def curves(path, rows):
    draw_training_curves(path, rows, PANELS, "t")


POINT = {"label": "shrink step 0.1", "loss": 0.05, "topographic_error": 0.3, "psnr": 18.0}
