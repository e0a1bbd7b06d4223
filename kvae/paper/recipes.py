"""Fields that settings of `kvae.paper.experiments` share, and the settings of all quantisers at one number of codes."""

import math
from typing import Any, NamedTuple


def quantizer(**fields: Any) -> dict[str, object]:
    """Returns fields of the quantiser by their dotted names in a config: {"model.quantizer.<field>": value}."""
    return {f"model.quantizer.{name}": value for name, value in fields.items()}


NO_MAP = quantizer(neighborhood="none")

# The recipe of configs/photos_vqvae.py for short runs, which improves every method.
RECIPE = {
    "model.augmentations": ("flip_horizontal", "rot90"),
    "optimizer.name": "muon",
    "optimizer.schedule": "cooldown",
}
DIM_3, DIM_8 = {"model.embedding_dim": 3}, {"model.embedding_dim": 8}


class Sizes(NamedTuple):
    """How each quantiser divides K codes.

    Attributes:
      plane: Grid shape of the map in two dimensions; None for the config's, (16, 32).
      cube: Grid shape in three dimensions, and the levels of FSQ.
      four_axes: Grid shape in four dimensions.
      parts: Number of codebooks of residual and grouped quantisers.
      part: Grid shape of each of these codebooks.
      decay: Decay of the moving averages: the memory of 1 / (1 - decay) steps holds at least 6 vectors per code.
    """

    plane: tuple[int, int] | None
    cube: tuple[int, int, int]
    four_axes: tuple[int, int, int, int]
    parts: int
    part: tuple[int, int]
    decay: float


SIZES = {
    512: Sizes(None, (8, 8, 8), (4, 4, 4, 8), 3, (2, 4), 0.8),
    4_096: Sizes((64, 64), (16, 16, 16), (8, 8, 8, 8), 2, (8, 8), 0.92),
    65_536: Sizes((256, 256), (32, 32, 64), (16, 16, 16, 16), 2, (16, 16), 0.995),
}
"""The sizes of the tables of quantisers, by number of codes per position."""

QUANTIZER_ROWS = {
    "tuned_ema": "EMA-VQ",
    "tuned_ema_kmeans": "EMA-VQ, K-means start",
    "tuned_ema_restarts": "EMA-VQ, restarts",
    "tuned_ema_restarts_8": "EMA-VQ, restarts, 8 dimensions",
    "tuned_ema_restarts_3": "EMA-VQ, restarts, 3 dimensions",
    "tuned_cosine": "restarts, 8 dimensions, cosine similarity",
    "tuned_rotation": "restarts, 8 dimensions, rotation trick",
    "tuned_diveq": "restarts, 8 dimensions, DiVeQ",
    "tuned_simvq": "SimVQ",
    "tuned_ibq": "IBQ, 8 dimensions",
    "tuned_lfq": "LFQ",
    "tuned_bsq": "BSQ",
    "tuned_fsq": "FSQ, three elements",
    "tuned_ifsq": "iFSQ, three elements",
    "tuned_residual": "residual EMA-VQ, restarts",
    "tuned_grouped": "grouped EMA-VQ, restarts",
    "tuned_hard": "map, two axes, hard (the paper's neighbourhood)",
    "tuned_gaussian": "map, two axes, Gaussian",
    "tuned_map": "map, two axes, Gaussian, 3 dimensions",
    "tuned_cube": "map, three axes, Gaussian",
    "tuned_four_axes": "map, four axes, Gaussian",
}
"""The rows of the tables of quantisers: {setting: label}."""


def quantizer_settings(codes: int) -> dict[str, dict[str, object]]:
    """Returns the settings of `QUANTIZER_ROWS` at a number of codes in `SIZES`: {setting: fields}."""
    sizes = SIZES[codes]
    plane = quantizer(grid_shape=sizes.plane) if sizes.plane else {}
    tuned = RECIPE | quantizer(decay=sizes.decay)
    no_map = tuned | plane | NO_MAP
    restarts = no_map | quantizer(restart_below=1.0)
    wide = sizes.plane or (16, 32)
    fsq = RECIPE | quantizer(name="fsq", levels=sizes.cube)
    bits = int(math.log2(codes))
    return {
        "tuned_ema": no_map,
        "tuned_ema_kmeans": no_map | quantizer(start="kmeans"),
        "tuned_ema_restarts": restarts,
        "tuned_ema_restarts_8": restarts | DIM_8,
        "tuned_ema_restarts_3": restarts | DIM_3,
        "tuned_cosine": restarts | DIM_8 | quantizer(metric="cosine"),
        "tuned_rotation": restarts | DIM_8 | quantizer(gradient="rotation"),
        "tuned_diveq": restarts | DIM_8 | quantizer(gradient="diveq"),
        "tuned_simvq": RECIPE | quantizer(name="simvq", codebook_size=codes),
        "tuned_ibq": RECIPE | DIM_8 | quantizer(name="ibq", codebook_size=codes),
        "tuned_lfq": RECIPE | quantizer(name="lfq", bits=bits),
        "tuned_bsq": RECIPE | quantizer(name="bsq", bits=bits),
        "tuned_fsq": fsq,
        "tuned_ifsq": fsq | quantizer(squashing="ifsq"),
        "tuned_residual": _stack("residual", sizes, depth=sizes.parts),
        "tuned_grouped": _stack("grouped", sizes, groups=sizes.parts, codebook_dim=16),
        "tuned_hard": tuned | plane,
        "tuned_gaussian": tuned | plane | _narrowing(wide, 1 / 4, 0.35**0.5, 0.1 / 4**2),  # to 0.59 nodes
        "tuned_map": tuned | plane | DIM_3 | _narrowing(wide, 1 / 8, 0.5**0.5, 0.03 / 2**2),  # to 0.71 nodes
        "tuned_cube": tuned | _narrowing(sizes.cube, 1 / 2, 0.5, 0.07 / 4**2) | quantizer(grid_shape=sizes.cube),
        "tuned_four_axes": tuned
        | _narrowing(sizes.four_axes, 1 / 2, 0.5, 0.07 / 4**2)
        | quantizer(grid_shape=sizes.four_axes),
    }


def _narrowing(shape: tuple[int, ...], share: float, lowest: float, shrink: float) -> dict[str, object]:
    """Returns a Gaussian neighbourhood. Late in training its width in nodes is the same for all shapes.

    Args:
      shape: The grid shape.
      share: First width as a share of the shortest axis.
      lowest: Lowest width in nodes.
      shrink: tau over the square of the first width.
    """
    first = share * min(shape)
    widths = quantizer(initial_width=first, lowest_width=lowest, shrink_step=round(shrink * first**2, 6))
    return quantizer(neighborhood="gaussian") | widths


def _stack(name: str, sizes: Sizes, **fields: Any) -> dict[str, object]:
    """Returns a residual or grouped quantiser of EMA-VQ with restarts."""
    inner = {"name": "kohonen", "grid_shape": sizes.part, "neighborhood": "none", "restart_below": 1.0, "decay": 0.8}
    inner = {f"model.quantizer.quantizer.{field}": value for field, value in inner.items()}
    return RECIPE | quantizer(name=name, **fields) | inner
