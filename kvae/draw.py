"""The pictures of a run, from its model: what `figures/` holds after each evaluation."""

import functools
import pathlib
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kvae import figures, measures
from kvae.models.autoencoder import Autoencoder, suffix

MAP_IMAGE_SIZE = 32
"""Side of the images on a codebook map, in pixels: more repeats the same texture."""

CODES_PER_BATCH = 256
OFFSETS = (1, 2, 3)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _apply(model, variables, argument, method):
    return model.apply(variables, argument, method=method)


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
    """Reconstructions after every code has moved by `offset` on each axis of its grid, clamped at the border (Figure 3).

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


def perturbation_psnr(model: Autoencoder, variables, images: np.ndarray) -> dict[str, float]:
    """`valid/perturbation_psnr_<offset>`: PSNR in dB of `shifted_reconstructions` for each of `OFFSETS`."""
    return {
        f"valid/perturbation_psnr_{offset}": float(
            jnp.mean(measures.psnr(images, shifted_reconstructions(model, variables, images, offset)))
        )
        for offset in OFFSETS
    }


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
        figures.codebook_map(
            folder / f"codebook_map{suffix(name)}.png",
            constant_code_images(model, variables, name, held),
            f"What each code{which} decodes to, on the map{beside} (step {step})",
        )
        grid_shape = tuple(layer.grid_shape)
        figures.hit_map(
            folder / f"hit_map{suffix(name)}.png",
            counts[name].reshape(grid_shape),
            f"How often each code{which} is used on the validation set (step {step})",
        )
        codewords = model.bind(variables).quantizers[name].codewords()
        figures.u_matrix(
            folder / f"u_matrix{suffix(name)}.png",
            np.asarray(measures.u_matrix(codewords, grid_shape)),
            f"U-matrix: distance of each codeword{which} to its neighbours on the map (step {step})",
        )
    figures.curves(folder / "curves.png", rows, f"Training up to step {step}")
