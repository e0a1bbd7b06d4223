"""Names, views and order of the codebooks of a trained model.

A quantiser named `top` with one codebook has the codebook `top`; with q codebooks it has `top_0` to `top_<q-1>`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from kvae import measures
from kvae.topology import Grid

PATCH_WIDTH = 3
"""Default width of a patch, in codes: the code itself and one code on each side."""

UNUSED_GREY = 235
"""Grey level, 0 to 255, of the mean patch of a code that is never used."""

IMAGES_PER_BATCH = 32

RANKED_NEIGHBORS = 8
"""Number of neighbours that trustworthiness and neighbourhood preservation compare."""

LARGEST_RANKED_SIZE = 4_096
"""Number of codes above which the order of a map is not measured. Comparing all pairs of codewords would take longer
than the rest of the evaluation."""


@dataclasses.dataclass(frozen=True)
class CodebookView:
    """The codes of images in one codebook, or their winning neurons on one map.

    Example:
      >>> import numpy as np
      >>> from kvae.grids import Plane
      >>> codes = np.array([[[0, 1], [1, 3]]])  # one image of 2 x 2 codes
      >>> view = CodebookView(codes, codebook_size=4, grid=Plane((2, 2)), is_map=True)
      >>> view.counts
      array([[1, 2],
             [0, 1]])
      >>> view.mean_patches(np.zeros((1, 8, 8, 3), np.uint8)).shape  # 3 codes of 4 pixels on each side
      (2, 2, 12, 12, 3)

    Attributes:
      codes: the codes of each image, int32 [n, h', w'].
      codebook_size: K, the number of codes.
      grid: the grid that the codes are arranged on; None if they have no neighbours.
      is_map: True if training makes codes that are close on the grid similar.
      codewords: float32 [K, d]; None without a grid, and for URL-SOM, whose neurons have no codewords.
      decode_all: returns the image that each code decodes to by itself, uint8 [K, h, w, 3]; None if the model does not
        decode.
      fixed_codes: the code that each other codebook is set to in the images of `decode_all`, by name of the codebook.
      label: the name of the codebook in titles, such as "top level"; empty if the model has only one.
      code_name: word for a code in titles, "code" or "neuron".
      usage: verb for a chosen code, "used" or "winning".
      patch_width: width and height of the patch that illustrates a code, in codes; odd.
    """

    codes: np.ndarray
    codebook_size: int
    grid: Grid | None
    is_map: bool
    codewords: np.ndarray | None = None
    decode_all: Callable[[], np.ndarray] | None = None
    fixed_codes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    label: str = ""
    code_name: str = "code"
    usage: str = "used"
    patch_width: int = PATCH_WIDTH

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the grid; (K,) without a grid."""
        return (self.codebook_size,) if self.grid is None else tuple(self.grid.shape)

    @property
    def cell(self) -> str:
        """The shape that a node is drawn in, "square" or "hexagon"."""
        return "square" if self.grid is None else self.grid.cell

    @property
    def arrangement(self) -> str:
        """The arrangement of the codes, for the end of a title: "on the map" or "in numerical order ..."."""
        text = "on the map" if self.is_map else "in numerical order (no neighbourhood, so no map)"
        border = self.grid.border if self.grid is not None else ""
        return f"{text} ({border})" if border else text

    @property
    def fixed_codes_text(self) -> str:
        """`fixed_codes`, for the end of a title; empty if there are none."""
        texts = (
            f", {name.replace('_', ' ')} fixed at its most used code, {code}" for name, code in self.fixed_codes.items()
        )
        return "".join(texts)

    @property
    def counts(self) -> np.ndarray:
        """The number of times each code occurs in these images, int [*shape]."""
        return np.bincount(self.codes.ravel(), minlength=self.codebook_size).reshape(self.shape)

    @property
    def u_matrix(self) -> np.ndarray | None:
        """The mean distance of each codeword to its neighbours, float32 [*shape]; None without codewords."""
        if self.grid is None or self.codewords is None:
            return None
        return np.asarray(measures.u_matrix(self.codewords, self.grid))

    def mean_patches(self, images: np.ndarray) -> np.ndarray:
        """Returns, for each code, the mean of the image patches around the positions of the code.

        A patch that extends beyond its image repeats the pixels at the border.

        Args:
          images: the images whose codes are in `codes`, uint8 [n, h, w, 3].

        Returns:
          uint8 [*shape, p, q, 3]; p and q are `patch_width` times the height and width of one code in pixels. Codes
          that are never used are `UNUSED_GREY`.
        """
        _, rows, columns = self.codes.shape
        height, width = images.shape[1] // rows, images.shape[2] // columns
        margins = [(0, 0), *(((self.patch_width - 1) // 2 * side,) * 2 for side in (height, width)), (0, 0)]
        padded, flat = np.pad(images, margins, mode="edge"), self.codes.ravel()
        sums = np.empty((self.codebook_size, self.patch_width * height, self.patch_width * width, 3))
        for y, x, channel in np.ndindex(sums.shape[1:]):
            # The values at position (y, x) of all patches.
            values = padded[:, y : y + rows * height : height, x : x + columns * width : width, channel]
            sums[:, y, x, channel] = np.bincount(flat, values.ravel(), self.codebook_size)
        counts = self.counts.reshape(-1, 1, 1, 1)
        means = np.where(counts, np.round(sums / np.maximum(counts, 1)), UNUSED_GREY).astype(np.uint8)
        return means.reshape(*self.shape, *means.shape[1:])


@functools.partial(jax.jit, static_argnums=(0, 3))
def jit_apply(model: nn.Module, variables: Mapping[str, Any], argument: Any, method: str) -> Any:
    """Returns `model.apply(variables, argument, method=method)`, compiled once per model, method and shape."""
    return model.apply(variables, argument, method=method)


def apply_in_batches(model: nn.Module, variables: Mapping[str, Any], images: np.ndarray, method: str) -> Any:
    """Applies a method of the model to any number of images, in batches of `IMAGES_PER_BATCH`.

    Args:
      model: a model.
      variables: its variables, of one replica.
      images: uint8 [n, h, w, 3].
      method: the name of a method that takes images.

    Returns:
      The result of the method, as NumPy arrays [n, ...].
    """
    parts, count = [], len(images)
    for start in range(0, count, IMAGES_PER_BATCH):
        # The last batch is padded with copies of the last image, so that all batches use the same compiled program.
        batch = images[np.minimum(np.arange(start, start + IMAGES_PER_BATCH), count - 1)]
        parts.append(jax.device_get(jit_apply(model, variables, batch, method)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _rank(measure: Callable, codewords: jax.Array, grid: Grid) -> jax.Array:
    """Returns a measure of a map's order, compiled once per measure and grid."""
    return measure(codewords, grid, RANKED_NEIGHBORS)


def map_order(codewords: jax.Array, grid: Grid) -> dict[str, float]:
    """Returns `trustworthiness` and `neighborhood_preservation` of a map, both from 0 to 1.

    Args:
      codewords: float32 [K, d].
      grid: the grid of the K codes.

    Returns:
      The two metrics by name; empty if K is at most 16, which is too few for 8 neighbours, or above
      `LARGEST_RANKED_SIZE`.
    """
    if not 2 * RANKED_NEIGHBORS < len(codewords) <= LARGEST_RANKED_SIZE:
        return {}
    ranked = (measures.trustworthiness, measures.neighborhood_preservation)
    return {measure.__name__: float(_rank(measure, codewords, grid)) for measure in ranked}


def codebook_names(quantizer: str, n_codebooks: int | None) -> list[str]:
    """Returns the names of a quantiser's codebooks.

    Args:
      quantizer: the name of the quantiser.
      n_codebooks: see `Quantizer.n_codebooks`.
    """
    return [quantizer] if n_codebooks is None else [f"{quantizer}_{i}" for i in range(n_codebooks)]


def by_codebook(quantizer: str, n_codebooks: int | None, values: Any) -> dict[str, Any]:
    """Splits values of all codebooks of a quantiser into the values of each codebook.

    Args:
      quantizer, n_codebooks: see `codebook_names`.
      values: a tree of arrays, [q, ...] if the quantiser has several codebooks.

    Returns:
      A tree for each codebook, by name of the codebook.
    """
    if n_codebooks is None:
        return {quantizer: values}
    names = codebook_names(quantizer, n_codebooks)
    return {name: jax.tree.map(lambda array, i=i: array[i], values) for i, name in enumerate(names)}


def sums_by_codebook(sums_by_quantizer: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Mapping[str, np.ndarray]]:
    """Splits the evaluation sums of each quantiser (see `Quantizer.batch_sums`) into the sums of each codebook."""
    sums_of_codebooks = {}
    for name, sums in sums_by_quantizer.items():
        counts = sums["counts"]
        sums_of_codebooks |= by_codebook(name, len(counts) if counts.ndim == 2 else None, sums)
    return sums_of_codebooks


def metric_suffix(codebook: str) -> str:
    """Returns the suffix of a metric's or picture's name: empty for `codebook`, else `_top`, `_bottom`, `_0`, ..."""
    return codebook.removeprefix("codebook") if codebook.startswith("codebook") else f"_{codebook}"


def codebook_label(codebook: str) -> str:
    """Returns the name of a codebook for titles, such as `top 0`; empty for `codebook`."""
    return metric_suffix(codebook).removeprefix("_").replace("_", " ")
