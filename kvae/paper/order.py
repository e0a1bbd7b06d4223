"""Uses of topological order: robustness to bit errors, smaller codebooks without training, entropy coding.

The module has NumPy functions of codes and codebooks, and three figures that apply them to runs of the table `peers`:

    python -m kvae.paper --figure=bit_errors runs/paper/photos    # also fewer_bits and compression
"""

import functools
import math
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from kvae import kohonen, measures
from kvae.models.bit_errors import with_bit_errors
from kvae.models.codebook_views import jit_apply
from kvae.paper.settings import Table, open_seed
from kvae.plots import transmission as plots
from kvae.runs.run import Run
from kvae.topology import Grid
from kvae.training.config.sections import load_data
from kvae.training.evaluate import samples

MEASURED_IMAGES = 256
"""Number of validation images to measure, and of training images to fit the coder to."""

BIT_ERROR_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
DISTANCE_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, math.inf)
"""Scales that the coder tries, as multiples of the mean distance between codes."""

LABELS = {"tuned_map": "map", "tuned_ema_restarts": "EMA-VQ with restarts", "tuned_fsq": "FSQ"}
"""Labels of the settings to compare; the map comes first."""


def sub_grids(shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yields the codes of a grid, then of coarser and coarser grids: int [K], [K/2], [K/4], ...

    Each step drops every second node along the longest axis.

    Example:
      >>> [codes.tolist() for codes in sub_grids((2, 4))]
      [[0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 4, 6], [0, 2]]

    Args:
      shape: Shape of the grid.
    """
    codes = np.arange(math.prod(shape)).reshape(shape)
    while codes.size > 1:
        yield codes.ravel()
        axis = int(np.argmax(codes.shape))
        codes = np.take(codes, range(0, codes.shape[axis], 2), axis=axis)


def most_used(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Yields all codes, then the most used half, the most used quarter, and so on: int [K], [K/2], ...

    Args:
      counts: Number of uses of each code, [K].
    """
    by_count, size = np.argsort(-counts, kind="stable"), len(counts)
    while size > 1:
        yield by_count[:size]
        size //= 2


def bits_per_code(codes: np.ndarray, distances: np.ndarray, usage: np.ndarray, scale: float) -> float:
    """Returns the mean cost of a code in bits, given the codes to its left and above it.

    p(c | left, up) is proportional to usage(c) exp(-(d(c, left) + d(c, up)) / scale); at the border the
    missing code's term is omitted. An ideal arithmetic coder spends -log2 p bits.

    Example:
      >>> import numpy as np
      >>> codes, distances = np.zeros((1, 2, 2), int), 1.0 - np.eye(4)
      >>> bits_per_code(codes, distances, usage=np.ones(4), scale=np.inf)
      2.0

    Args:
      codes: Codes of images, int [n, h, w].
      distances: Distances between codes, float [K, K].
      usage: Number of uses of each code in other images, float [K], positive.
      scale: Scale of the distances, in their unit; infinity ignores the neighbours.
    """
    left, up = np.full_like(codes, -1), np.full_like(codes, -1)
    left[:, :, 1:], up[:, 1:] = codes[:, :, :-1], codes[:, :-1]
    # The last row, at index -1, is the term of a missing code.
    terms = np.concatenate([-distances / scale, np.zeros_like(distances[:1])])
    total = 0.0
    for image, image_left, image_up in zip(codes, left, up, strict=True):
        scores = np.log(usage) + terms[image_left] + terms[image_up]
        chosen = np.take_along_axis(scores, image[..., None], axis=-1)[..., 0]
        highest = scores.max(axis=-1)
        total += np.sum(highest + np.log(np.exp(scores - highest[..., None]).sum(axis=-1)) - chosen)
    return float(total / math.log(2) / codes.size)


def best_bits_per_code(train: np.ndarray, codes: np.ndarray, distances: np.ndarray, usage: np.ndarray) -> float:
    """Returns `bits_per_code` at the scale of `DISTANCE_SCALES` that is best on the codes of training images.

    Args:
      train: Codes of training images, int [n, h, w].
      codes: Codes of the images to measure, int [n, h, w].
      distances: Distances between codes, float [K, K].
      usage: Number of uses of each code in training images, float [K], positive.
    """
    mean = distances.mean()
    scale = min(DISTANCE_SCALES, key=lambda scale: bits_per_code(train, distances, usage, scale * mean))
    return bits_per_code(codes, distances, usage, scale * mean)


class EncodedImages:
    """Images, and the codes that a trained autoencoder with one codebook gives them.

    Args:
      run: The trained autoencoder.

    Attributes:
      images, train_images: Images of the validation and the training set, uint8 [n, h, w, 3].
      codes, train_codes: The codes of these images, int [n, h', w'].
      codewords: The codebook, float32 [K, d].
    """

    def __init__(self, run: Run):
        dataset, _ = load_data(run.config)
        self.run, (self.name,) = run, run.model.quantizers
        self.layer, self.codewords = run.model.quantizers[self.name], run.codebooks[self.name]
        self.codewords = self.codewords.reshape(-1, self.codewords.shape[-1])
        sets = dataset.validation, {"train": dataset.train}
        self.images, self.train_images = (samples(examples, MEASURED_IMAGES)["image"] for examples in sets)
        self.codes, self.train_codes = (np.asarray(run.encode(x)[self.name]) for x in (self.images, self.train_images))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the map, or (K,) for a codebook without order."""
        return self.layer.grid.shape if self.layer.is_map else (len(self.codewords),)

    @property
    def usage(self) -> np.ndarray:
        """Number of uses of each code in the training images, plus one: float [K]."""
        return 1.0 + np.bincount(self.train_codes.ravel(), minlength=len(self.codewords))

    def psnr(self, codes: np.ndarray) -> float:
        """Returns the mean PSNR, in dB, of the validation images decoded from these codes, int [n, h', w']."""
        return float(np.mean(measures.psnr(self.images, np.asarray(self.run.decode({self.name: codes})))))

    @functools.cached_property
    def clean_psnr(self) -> float:
        """Mean PSNR, in dB, of the validation images decoded from their own codes."""
        return self.psnr(self.codes)

    def lost_psnr(self, rate: float) -> float:
        """Returns the drop in mean PSNR, in dB, at a bit error rate."""
        received = with_bit_errors(self.codes, self.shape, rate, np.random.default_rng(0))
        return self.clean_psnr - self.psnr(received)

    def codes_among(self, kept: np.ndarray) -> np.ndarray:
        """Encodes the validation images with only the codes in `kept`: int [n, h', w']."""
        out = jit_apply(self.run.model, self.run.variables, self.images, "__call__")
        return kept[np.asarray(kohonen.nearest_code(out.latents[self.name], jnp.asarray(self.codewords[kept])))]

    def distances(self) -> dict[str, np.ndarray]:
        """Returns the distances between codes [K, K] by kind: between codewords and, for a map, on the grid."""
        grid: Grid = self.layer.grid
        on_grid = {"on the grid": np.asarray(grid.distances())} if self.layer.is_map else {}
        squares = np.sum(np.square(self.codewords[:, None] - self.codewords[None]), axis=-1)
        return on_grid | {"between codewords": np.sqrt(squares)}


def encoded_by_label(
    table: Table, settings: Sequence[str] = tuple(LABELS)
) -> Iterator[tuple[str, list[EncodedImages]]]:
    """Yields the label of each setting with runs, and the encoded images of its seeds."""
    for setting in settings:
        runs = [open_seed(seed) for seed in table.seeds.get(setting, ())]
        if runs:
            yield LABELS[setting], [EncodedImages(run) for run in runs]


def bit_error_figure(table: Table, stem: str) -> Iterator[str]:
    """Draws the PSNR lost to bit errors, by bit error rate."""
    lost = {}
    for label, seeds in encoded_by_label(table):
        clean = np.mean([seed.clean_psnr for seed in seeds])
        lost[f"{label}, {clean:.1f} dB without errors"] = np.array(
            [[seed.lost_psnr(rate) for rate in BIT_ERROR_RATES] for seed in seeds]
        )
    plots.draw_bit_errors(f"{stem}.png", BIT_ERROR_RATES, lost, f"{table.dataset}: PSNR lost to bit errors")
    yield f"{stem}.png"


def pruning_figure(table: Table, stem: str) -> Iterator[str]:
    """Draws the PSNR after pruning codes without training, for a coarser map and for the most used codes of EMA-VQ."""
    psnr, bits = {}, ()
    for label, seeds in encoded_by_label(table, ("tuned_map", "tuned_ema_restarts")):
        if seeds[0].layer.is_map:
            rule, kept = "every second row or column", [list(sub_grids(seed.shape)) for seed in seeds]
        else:
            rule, kept = "its most used codes", [list(most_used(seed.usage)) for seed in seeds]
        psnr[f"{label}, {rule}"] = np.array([
            [seed.psnr(seed.codes_among(codes)) for codes in subsets]
            for seed, subsets in zip(seeds, kept, strict=True)
        ])  # fmt: skip
        bits = [math.log2(len(codes)) for codes in kept[0]]
    plots.draw_pruning(f"{stem}.png", bits, psnr, f"{table.dataset}: PSNR after pruning the codebook, without training")
    yield f"{stem}.png"


def code_costs(encoded: EncodedImages) -> dict[str, float]:
    """Returns bits per code for fixed-length codes, for coding by usage, and for coding by usage and neighbours."""
    distances = encoded.distances()
    costs = {
        "fixed length": math.log2(len(encoded.codewords)),
        "by usage": bits_per_code(encoded.codes, distances["between codewords"], encoded.usage, math.inf),
    }
    for space, between in distances.items():
        cost = best_bits_per_code(encoded.train_codes, encoded.codes, between, encoded.usage)
        costs[f"by usage and distance to neighbouring codes, {space}"] = cost
    return costs


def compression_figure(table: Table, stem: str) -> Iterator[str]:
    """Draws the bits per code of the coders in `code_costs`."""
    costs = {}
    for label, seeds in encoded_by_label(table):
        rows = [code_costs(seed) for seed in seeds]
        costs[label] = {coder: np.array([row[coder] for row in rows]) for coder in rows[0]}
    plots.draw_compression(f"{stem}.png", costs, f"{table.dataset}: bits per code")
    yield f"{stem}.png"
