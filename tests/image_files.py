"""Image files for tests: their content, and how they are saved."""

import numpy as np
from PIL import Image

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
RED, GREY, WHITE = (204, 0, 0), (100, 100, 100), (255, 255, 255)


def save(path, color=GREY, size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path, **options)
    return path
