"""What it is good for that a codebook is in order: codes sent over a noisy line, fewer codes, shorter codes.

Functions of codes and codebooks in NumPy, and the three figures that compare the ways of learning 512 codes by them:
`bit_errors`, `fewer_bits` and `compression` of `python -m kvae.paper`, from the runs of the table `peers`.
"""

import functools
import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from kvae import kohonen, measures
from kvae.models.codebooks import jit_apply
from kvae.paper.settings import Table, open_seed
from kvae.plots import paper as figures
from kvae.runs.run import Run
from kvae.topology import Grid
from kvae.training.config.sections import load_data
from kvae.training.evaluate import samples

IMAGES = 256
"""How many validation images are measured; as many of the training set fit what is fitted."""

BIT_ERROR_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, math.inf)
"""Scales that are tried for how far neighbouring codes lie apart, in mean distances between codes."""

LABELS = {"tuned_map": "map", "tuned_ema_restarts": "EMA-VQ with restarts", "tuned_fsq": "FSQ"}
"""The settings that are compared; the map comes first."""


def with_bit_errors(codes: np.ndarray, shape: tuple[int, ...], rate: float, random: np.random.Generator) -> np.ndarray:
    """Codes after each bit was flipped with probability `rate`.

    The position along each axis of the grid is sent in Gray code: positions that are next to one another differ in one
    bit. What comes out beyond the last position is the last one.

    Args:
      codes: int [...].
      shape: of the grid; (K,) of codes that are but numbers.
      rate: the bit error rate, from 0 to 1.
      random: where the errors come from.
    """
    found = []
    for position, side in zip(np.unravel_index(codes, shape), shape, strict=True):
        bits = math.ceil(math.log2(side))
        flips = (random.random((*codes.shape, bits)) < rate) @ (1 << np.arange(bits))
        sent = (position ^ (position >> 1)) ^ flips
        received = np.bitwise_xor.reduce([sent >> shift for shift in range(bits)], axis=0) if bits else sent
        found.append(np.minimum(received, side - 1))
    return np.ravel_multi_index(found, shape)


def sub_grids(shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Codes of a grid of which every second row or column was left out, again and again: int [K], [K/2], [K/4], ...

    Each time it is the longer side that is halved.
    """
    codes = np.arange(math.prod(shape)).reshape(shape)
    while codes.size > 1:
        yield codes.ravel()
        axis = int(np.argmax(codes.shape))
        codes = np.take(codes, range(0, codes.shape[axis], 2), axis=axis)


def most_used(counts: np.ndarray) -> Iterator[np.ndarray]:
    """The most used codes of a codebook: all, half of them, a quarter, and so on."""
    order, size = np.argsort(-counts, kind="stable"), len(counts)
    while size > 1:
        yield order[:size]
        size //= 2


def bits_per_code(codes: np.ndarray, distances: np.ndarray, usage: np.ndarray, scale: float) -> float:
    """What a code costs, in bits, if those to the left of it and above it are known.

    p(c | left, up) is proportional to usage(c) exp(-(d(c, left) + d(c, up)) / scale); where there is no neighbour, its
    term is left out. An ideal arithmetic coder takes -log2 p bits.

    Args:
      codes: int [n, h, w].
      distances: between codes, float [K, K].
      usage: how often each code is used elsewhere, float [K], positive.
      scale: of the distances; infinity forgets the neighbours.
    """
    left, up = np.full_like(codes, -1), np.full_like(codes, -1)
    left[:, :, 1:], up[:, 1:] = codes[:, :, :-1], codes[:, :-1]
    near = np.concatenate([-distances / scale, np.zeros_like(distances[:1])])  # its last row, of -1, is no neighbour
    total = 0.0
    for own, own_left, own_up in zip(codes, left, up, strict=True):
        scores = np.log(usage) + near[own_left] + near[own_up]
        chosen = np.take_along_axis(scores, own[..., None], axis=-1)[..., 0]
        highest = scores.max(axis=-1)
        total += np.sum(highest + np.log(np.exp(scores - highest[..., None]).sum(axis=-1)) - chosen)
    return float(total / math.log(2) / codes.size)


def best_bits_per_code(train: np.ndarray, codes: np.ndarray, distances: np.ndarray, usage: np.ndarray) -> float:
    """`bits_per_code` with the scale, of `SCALES`, that is best on the codes of training images."""
    mean = distances.mean()
    scale = min(SCALES, key=lambda scale: bits_per_code(train, distances, usage, scale * mean))
    return bits_per_code(codes, distances, usage, scale * mean)


class Measured:
    """A trained autoencoder with one codebook, and its codes.

    Attributes:
      images, train_images: of the validation and the training set, uint8 [n, h, w, 3].
      codes, train_codes: theirs, int [n, h', w'].
    """

    def __init__(self, run: Run):
        dataset, _ = load_data(run.config)
        self.run, (self.name,) = run, run.model.quantizers
        self.layer, self.codewords = run.model.quantizers[self.name], run.codebooks[self.name]
        self.codewords = self.codewords.reshape(-1, self.codewords.shape[-1])
        sets = dataset.validation, {"train": dataset.train}
        self.images, self.train_images = (samples(of_set, IMAGES)["image"] for of_set in sets)
        self.codes, self.train_codes = (np.asarray(run.encode(x)[self.name]) for x in (self.images, self.train_images))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid; of one line of numbers where codes that are near on it are not alike."""
        return self.layer.grid.shape if self.layer.is_map else (len(self.codewords),)

    @property
    def usage(self) -> np.ndarray:
        """How often each code is used on the training images, plus one: [K]."""
        return 1.0 + np.bincount(self.train_codes.ravel(), minlength=len(self.codewords))

    def psnr(self, codes: np.ndarray) -> float:
        """Mean PSNR, in dB, of the validation images that are made of other codes."""
        return float(np.mean(measures.psnr(self.images, np.asarray(self.run.decode({self.name: codes})))))

    @functools.cached_property
    def clean_psnr(self) -> float:
        """`psnr` of the codes as they are."""
        return self.psnr(self.codes)

    def lost(self, rate: float) -> float:
        """By how many dB the mean PSNR falls at a bit error rate."""
        received = with_bit_errors(self.codes, self.shape, rate, np.random.default_rng(0))
        return self.clean_psnr - self.psnr(received)

    def codes_among(self, kept: np.ndarray) -> np.ndarray:
        """Codes of the validation images if only those of `kept` may be used."""
        out = jit_apply(self.run.model, self.run.variables, self.images, "__call__")
        return kept[np.asarray(kohonen.nearest_code(out.latents[self.name], jnp.asarray(self.codewords[kept])))]

    def distances(self) -> dict[str, np.ndarray]:
        """How far codes lie apart [K, K]: on the grid, and in the space of the codewords."""
        grid: Grid = self.layer.grid
        apart = {"on the grid": np.asarray(grid.distances())} if self.layer.is_map else {}
        squares = np.sum(np.square(self.codewords[:, None] - self.codewords[None]), axis=-1)
        return apart | {"between codewords": np.sqrt(squares)}


def _measured(table: Table, settings=tuple(LABELS)) -> Iterator[tuple[str, list[Measured]]]:
    """By label of a setting that was trained, its seeds."""
    for setting in settings:
        runs = [open_seed(seed) for seed in table.seeds.get(setting, ())]
        if runs:
            yield LABELS[setting], [Measured(run) for run in runs]


def bit_errors(table: Table, stem: str) -> Iterator[str]:
    """PSNR that is lost when bits of the codes are flipped, by the bit error rate."""
    lost = {}
    for label, seeds in _measured(table):
        clean = np.mean([seed.clean_psnr for seed in seeds])
        lost[f"{label}, {clean:.1f} dB without errors"] = np.array(
            [[seed.lost(rate) for rate in BIT_ERROR_RATES] for seed in seeds]
        )
    figures.bit_errors(f"{stem}.png", BIT_ERROR_RATES, lost, f"{table.dataset}: what flipped bits cost")
    yield f"{stem}.png"


def fewer_bits(table: Table, stem: str) -> Iterator[str]:
    """PSNR after codes were left out without training: every second row or column of a map, else the least used."""
    found, bits = {}, ()
    for label, seeds in _measured(table, ("tuned_map", "tuned_ema_restarts")):
        if seeds[0].layer.is_map:
            way, kept = "every second row or column", [list(sub_grids(seed.shape)) for seed in seeds]
        else:
            way, kept = "its most used codes", [list(most_used(seed.usage)) for seed in seeds]
        found[f"{label}, {way}"] = np.array([
            [seed.psnr(seed.codes_among(codes)) for codes in own] for seed, own in zip(seeds, kept, strict=True)
        ])  # fmt: skip
        bits = [math.log2(len(codes)) for codes in kept[0]]
    figures.fewer_bits(f"{stem}.png", bits, found, f"{table.dataset}: a trained codebook cut down, without training")
    yield f"{stem}.png"


def compression(table: Table, stem: str) -> Iterator[str]:
    """Bits per code: as a number, by how often codes are used, and by the codes to the left and above."""
    found = {}
    for label, seeds in _measured(table):
        rows = [
            {
                "as a number": math.log2(len(seed.codewords)),
                "by use": bits_per_code(seed.codes, seed.distances()["between codewords"], seed.usage, math.inf),
            }
            | {
                f"by use and distance from codes beside it, {space}": best_bits_per_code(
                    seed.train_codes, seed.codes, distances, seed.usage
                )
                for space, distances in seed.distances().items()
            }
            for seed in seeds
        ]
        found[label] = {way: np.array([row[way] for row in rows]) for way in rows[0]}
    figures.compression(f"{stem}.png", found, f"{table.dataset}: what a code costs")
    yield f"{stem}.png"
