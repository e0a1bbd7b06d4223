"""A look inside a trained model: how far its map is in order, and the pictures that `figures/` holds."""

import functools
import pathlib
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kvae import measures
from kvae.figures import run as figures
from kvae.figures import urlsom as urlsom_figures
from kvae.models.autoencoder import Autoencoder, suffix
from kvae.models.urlsom import URLSOM

MAP_IMAGE_SIZE = 32
"""Side of the images on a codebook map, in pixels: more repeats the same texture."""

CODES_PER_BATCH = 256
OFFSETS = (1, 2, 3)

RANKED_NEIGHBORS = 8
LARGEST_RANKED_SIZE = 4_096
"""Ranking all codewords against all is left out for larger maps: it would take longer than the evaluation."""


@functools.partial(jax.jit, static_argnums=(0, 3))
def _apply(model, variables, argument, method):
    return model.apply(variables, argument, method=method)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _ranked(measure, codewords, grid_shape):
    return measure(codewords, grid_shape, RANKED_NEIGHBORS)


def constant_code_images(model: Autoencoder, variables, varied: str, held: Mapping[str, int]) -> np.ndarray:
    """For each code, the decoded image whose every position holds that code (Figures 2 and 7).

    Args:
      model: an autoencoder.
      variables: of one replica.
      varied: the codebook that is gone through.
      held: for every other codebook, the code that stays.

    Returns:
      uint8 [*grid_shape, h, w, 3].
    """
    grid_shape = tuple(model.quantizers[varied].grid_shape)
    size = int(np.prod(grid_shape))
    images = []
    for start in range(0, size, CODES_PER_BATCH):
        code = jnp.minimum(start + jnp.arange(min(CODES_PER_BATCH, size)), size - 1)
        codes = {}
        for name, stride in model.code_strides.items():
            side = MAP_IMAGE_SIZE // stride
            value = code if name == varied else jnp.full_like(code, held[name])
            codes[name] = jnp.broadcast_to(value[:, None, None], (len(code), side, side)).astype(jnp.int32)
        images.append(np.asarray(_apply(model, variables, codes, "decode")))
    return np.concatenate(images)[:size].reshape(*grid_shape, MAP_IMAGE_SIZE, MAP_IMAGE_SIZE, 3)


def shifted_reconstructions(model: Autoencoder, variables, images: np.ndarray, offset: int, names=None) -> np.ndarray:
    """Reconstructions after every code has moved by `offset` on each axis of its grid, up to the border (Figure 3).

    Without a neighbourhood the grid means nothing, and the code's number itself is moved, as in the paper.

    Args:
      model: an autoencoder.
      variables: of one replica.
      images: uint8 [b, h, w, 3].
      offset: how far, in nodes.
      names: the codebooks that are shifted; all of them by default.
    """
    codes = dict(_apply(model, variables, images, "encode"))
    for name in names or codes:
        layer = model.quantizers[name]
        flat = layer.neighborhood == "none"
        grid_shape = (int(np.prod(layer.grid_shape)),) if flat else tuple(layer.grid_shape)
        codes[name] = measures.shift_codes(codes[name], grid_shape, offset)
    return np.asarray(_apply(model, variables, codes, "decode"))


def order(codewords: jax.Array, grid_shape: tuple[int, ...]) -> dict[str, float]:
    """Trustworthiness and neighbourhood preservation of a map; nothing where it is too small or too large for them."""
    if not 2 * RANKED_NEIGHBORS < len(codewords) <= LARGEST_RANKED_SIZE:
        return {}
    ranked = (measures.trustworthiness, measures.neighborhood_preservation)
    return {measure.__name__: float(_ranked(measure, codewords, tuple(grid_shape))) for measure in ranked}


@functools.singledispatch
def inspect(model: nn.Module, variables, images: np.ndarray) -> dict[str, float]:
    """What can be measured of a model apart from its totals: metrics by name.

    Args:
      model: decides what is measured.
      variables: of one replica.
      images: validation samples, uint8 [n, h, w, 3].
    """
    raise TypeError(f"nothing is known of how to inspect a {type(model).__name__}")


@inspect.register
def _(model: Autoencoder, variables, images):
    """Trustworthiness and neighbourhood preservation of each map, and PSNR in dB after a shift of all codes."""
    metrics = {}
    for name, layer in model.quantizers.items():
        codewords = model.bind(variables).quantizers[name].codewords()
        metrics |= {measure + suffix(name): value for measure, value in order(codewords, layer.grid_shape).items()}
    for offset in OFFSETS:
        shifted = shifted_reconstructions(model, variables, images, offset)
        metrics[f"perturbation_psnr_{offset}"] = float(jnp.mean(measures.psnr(images, shifted)))
    return metrics


@inspect.register
def _(model: URLSOM, variables, images):
    """Trustworthiness and neighbourhood preservation of the vectors that the neurons answer to."""
    return order(model.bind(variables).neuron_vectors(), model.grid_shape)


@functools.singledispatch
def draw(model: nn.Module, variables, images: np.ndarray, totals: Mapping[str, np.ndarray], rows, folder) -> None:
    """Draws a model's pictures into `folder`.

    Args:
      model: decides what is drawn.
      variables: of one replica.
      images: validation samples, uint8 [n, h, w, 3].
      totals: of the evaluation, of that replica.
      rows: of metrics.jsonl.
      folder: where the PNG files go.
    """
    raise TypeError(f"nothing is known of how to draw a {type(model).__name__}")


@draw.register
def _(model: Autoencoder, variables, images, totals, rows, folder):
    folder, step = pathlib.Path(folder), rows[-1]["step"]
    folder.mkdir(parents=True, exist_ok=True)
    shown = images[:16]
    figures.reconstructions(
        folder / "reconstructions.png",
        shown,
        np.asarray(_apply(model, variables, shown, "reconstruct")),
        f"Validation images and their reconstructions after {step} steps",
    )
    counts = {name: np.asarray(totals[f"counts{suffix(name)}"]) for name in model.quantizers}
    most_used = {name: int(np.argmax(of_codebook)) for name, of_codebook in counts.items()}
    for name, layer in model.quantizers.items():
        held = {other: code for other, code in most_used.items() if other != name}
        which = "" if name == "codebook" else f" of the {name} level"
        beside = "".join(f", {other} held at its most used code, {code}" for other, code in held.items())
        where = (
            "in order of number: without a neighbourhood there is no map"
            if layer.neighborhood == "none"
            else "on the map"
        )
        grid_shape = tuple(layer.grid_shape)
        figures.codebook_map(
            folder / f"codebook_map{suffix(name)}.png",
            constant_code_images(model, variables, name, held),
            f"What each code{which} decodes to, {where}{beside} (step {step})",
            counts[name].reshape(grid_shape),
        )
        figures.hit_map(
            folder / f"hit_map{suffix(name)}.png",
            counts[name].reshape(grid_shape),
            f"How often each code{which} is used on the validation set (step {step})",
        )
        codewords = model.bind(variables).quantizers[name].codewords()
        figures.u_matrix(
            folder / f"u_matrix{suffix(name)}.png",
            np.asarray(measures.u_matrix(codewords, grid_shape)),
            f"U-matrix: distance of each codeword{which} to its neighbours {where} (step {step})",
            counts[name].reshape(grid_shape),
        )
    figures.curves(folder / "curves.png", rows, f"Training up to step {step}")


@draw.register
def _(model: URLSOM, variables, images, totals, rows, folder):
    folder, step = pathlib.Path(folder), rows[-1]["step"]
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, which in (("", "validation"), ("train_", "training")):
        counts = np.asarray(totals[f"{prefix}counts"]).reshape(model.grid_shape)
        title = f"How often each neuron wins on the {which} set (step {step})"
        figures.hit_map(folder / f"{prefix}hit_map.png", counts, title, unit="neurons")
        if f"{prefix}table" in totals:
            # The scatter is random within a neuron: who won what for which label is all that there is to know.
            table = np.asarray(totals[f"{prefix}table"]).astype(int)
            winners, labels = (np.repeat(index.ravel(), table.ravel()) for index in np.indices(table.shape))
            title = f"Winners on the {which} set, by label (step {step})"
            path = folder / f"{prefix}winners.png"
            urlsom_figures.winners(path, winners, labels, model.label_names, model.grid_shape, title)
    figures.curves(folder / "curves.png", rows, f"Training up to step {step}")
