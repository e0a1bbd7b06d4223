"""A look inside a trained autoencoder: how far its maps are in order, and the pictures that `figures/` holds.

Functions of a model, its variables and uint8 images; nothing here is part of training.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvae import measures
from kvae.models.coding import CodebookView, apply, in_batches, level, order, part_names, split, suffix
from kvae.topology import Grid, Plane

MAP_IMAGE_SIZE = 32
"""Side of the images on a codebook map, in pixels: more repeats the same texture."""

CODES_PER_BATCH = 256
OFFSETS = (1, 2, 3)
SHOWN = 16
"""How many images are shown beside their reconstructions."""


def maps(model, variables) -> dict[str, tuple[Grid, jax.Array]]:
    """By codebook, those with a grid: where its codes lie, and its codewords float32 [K, d]."""
    found = {}
    for name, layer in model.bind(variables).quantizers.items():
        if layer.grid is None:
            continue
        parts = split(name, layer.n_codebooks, layer.codewords())
        found |= {part: (layer.grid, codewords) for part, codewords in parts.items()}
    return found


def constant_code_images(model, variables, varied: str, held: Mapping[str, int]) -> np.ndarray:
    """For each code, the decoded image whose every position holds that code (Figures 2 and 7).

    Args:
      model: an autoencoder.
      variables: of one replica.
      varied: the codebook that is gone through; `<name>_<i>` is the i-th of a quantiser with several.
      held: for every other codebook, the code that stays.

    Returns:
      uint8 [K, h, w, 3].
    """
    owner = next(name for name in model.quantizers if varied == name or varied.startswith(f"{name}_"))
    size = model.quantizers[owner].codebook_size
    images = []
    for start in range(0, size, CODES_PER_BATCH):
        code = np.minimum(start + np.arange(min(CODES_PER_BATCH, size)), size - 1)
        codes = {}
        for name, stride in model.code_strides.items():
            side, q = max(1, MAP_IMAGE_SIZE // stride), model.quantizers[name].n_codebooks
            columns = [code if part == varied else np.full_like(code, held[part]) for part in part_names(name, q)]
            column = columns[0] if q is None else np.stack(columns, axis=-1)
            shape = (len(code), side, side, *column.shape[1:])
            codes[name] = np.broadcast_to(column[:, None, None], shape).astype(np.int32)
        images.append(np.asarray(apply(model, variables, codes, "decode")))
    return np.concatenate(images)[:size]


def shifted_reconstructions(model, variables, images: np.ndarray, offset: int, names=None) -> np.ndarray:
    """Reconstructions after every code has moved by `offset` on each axis of its grid, up to the border (Figure 3).

    Without a neighbourhood the grid means nothing, and the code's number itself is moved, as in the paper.

    Args:
      model: an autoencoder.
      variables: of one replica.
      images: uint8 [n, h, w, 3].
      offset: nodes to move.
      names: the codebooks that are moved; all by default.

    Returns:
      uint8 [n, h, w, 3].
    """
    codes = apply(model, variables, images, "encode")
    return np.asarray(_decode_moved(model, variables, codes, offset, tuple(names or codes)))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _decode_moved(model, variables, codes, offset, names):
    codes = {**codes, **{name: moved(model.quantizers[name], codes[name], offset) for name in names}}
    return model.apply(variables, codes, method="decode")


def moved(layer, codes: jax.Array, offset: int) -> jax.Array:
    """Codes moved over their map, or by their number where there is none."""
    grid = layer.grid
    if not layer.is_map:
        grid = Plane((layer.codebook_size,))
    return grid.shift(codes, offset)


def measure(model, variables, images: np.ndarray) -> dict[str, float]:
    """Trustworthiness and neighbourhood preservation of each map, and PSNR in dB after a shift of all codes.

    Args:
      model: an autoencoder.
      variables: of one replica.
      images: validation samples, uint8 [n, h, w, 3].
    """
    metrics = {}
    for name, (grid, codewords) in maps(model, variables).items():
        metrics |= {measure + suffix(name): value for measure, value in order(codewords, grid).items()}
    for offset in OFFSETS:
        shifted = shifted_reconstructions(model, variables, images, offset)
        metrics[f"perturbation_psnr_{offset}"] = float(jnp.mean(measures.psnr(images, shifted)))
    return metrics


def codebook_views(model, variables, images: np.ndarray) -> dict[str, CodebookView]:
    """See `Model.codebook_views`: one for each codebook, `<name>_<i>` for the i-th of a quantiser with several."""
    codes, layers = {}, {}
    for name, of_images in in_batches(model, variables, images, "encode").items():
        layer = model.quantizers[name]
        by_codebook = of_images if layer.n_codebooks is None else np.moveaxis(of_images, -1, 0)
        parts = split(name, layer.n_codebooks, by_codebook)
        codes, layers = codes | parts, layers | dict.fromkeys(parts, layer)
    most_used = {name: int(np.bincount(of_images.ravel()).argmax()) for name, of_images in codes.items()}
    mapped, found = maps(model, variables), {}
    for name, layer in layers.items():
        held = {other: code for other, code in most_used.items() if other != name}
        which = level(name)
        found[name] = CodebookView(
            codes[name],
            layer.codebook_size,
            layer.grid,
            layer.is_map,
            codewords=mapped[name][1] if name in mapped else None,
            decoded=functools.partial(constant_code_images, model, variables, name, held),
            held=held,
            level=f"codebook {which}" if which.isdigit() else f"{which} level" if which else "",
        )
    return found


def pictures(
    model, variables, images: np.ndarray, sums: Mapping[str, Mapping[str, np.ndarray]], step: int
) -> dict[str, Callable[[Any], None]]:
    """The pictures of an autoencoder: by name, a function that draws one at a path.

    Args:
      model: an autoencoder.
      variables: of one replica.
      images: validation samples, uint8 [n, h, w, 3].
      sums: of the evaluation, by codebook: `counts` [K].
      step: for the titles.
    """
    from kvae.plots import run as figures

    def reconstructions(path):
        shown = images[np.linspace(0, len(images) - 1, min(SHOWN, len(images))).round().astype(int)]
        found = np.asarray(apply(model, variables, shown, "reconstruct"))
        title = f"Validation images and their reconstructions after {step} steps"
        figures.reconstructions(path, shown, found, title, np.asarray(measures.psnr(shown, found)))

    found = {"reconstructions": reconstructions}
    for name, coding in codebook_views(model, variables, images).items():
        found |= _codebook_pictures(name, coding, images, np.asarray(sums[name]["counts"]), step)
    return found


def _codebook_pictures(name, coding, images, counts, step):
    """Codebook map, hit map and, where there is a grid, U-matrix of one codebook."""
    from kvae.plots import maps

    which = coding.level if coding.level.startswith("codebook") else f"the {coding.level}"
    which, end = f" of {which}" if coding.level else "", suffix(name)
    counts = counts.reshape(coding.shape)

    def codebook_map(path):
        decoded = coding.decoded()
        decoded = decoded.reshape(*coding.shape, *decoded.shape[1:])
        title = f"What each code{which} decodes to, {coding.where}{coding.beside} (step {step})"
        maps.codebook_map(path, decoded, title, counts, coding.cell, coding.mean_patches(images))

    def hit_map(path):
        title = f"How often each code{which} is used on the validation set (step {step})"
        maps.hit_map(path, counts, title, cell=coding.cell)

    def u_matrix(path):
        title = f"U-matrix: distance of each codeword{which} to its neighbours {coding.where} (step {step})"
        maps.u_matrix(path, coding.u_matrix, title, counts, coding.cell)

    found = {f"codebook_map{end}": codebook_map, f"hit_map{end}": hit_map}
    return found | ({f"u_matrix{end}": u_matrix} if coding.grid is not None else {})
