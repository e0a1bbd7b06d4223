"""Extra metrics, codebook views and pictures of a trained autoencoder. Evaluations use them; training steps do not."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from kvae import measures
from kvae.models.bit_errors import binary_shape, with_bit_errors
from kvae.models.codebook_views import (
    CodebookView,
    apply_in_batches,
    by_codebook,
    codebook_label,
    codebook_names,
    jit_apply,
    map_order,
    metric_suffix,
)
from kvae.quantizers.base import Quantizer
from kvae.topology import Grid, Plane

if TYPE_CHECKING:
    from kvae.models.autoencoders.autoencoder import Autoencoder

CONSTANT_IMAGE_SIZE = 32
"""Side, in pixels, of the image decoded from one code at every position. A larger image only repeats the texture."""

CODES_PER_BATCH = 256

PERTURBATION_OFFSETS = (1, 2, 3)
"""Shifts of all codes, in nodes of the grid, after which PSNR is measured."""

LARGEST_LEGIBLE_SIDE, PART_SIDE = 96, 32
"""Codes along an axis of the largest grid whose tiles can be told apart in a picture, and of the part that is shown."""

BIT_ERROR_RATE = 0.01

NUM_RECONSTRUCTIONS = 16
"""Number of images shown next to their reconstructions."""


def codewords_on_grids(model: Autoencoder, variables: Mapping[str, Any]) -> dict[str, tuple[Grid, jax.Array]]:
    """Returns the grid and the codewords, float32 [K, d], of each codebook that has a grid."""
    maps = {}
    for name, layer in model.bind(variables).quantizers.items():
        if layer.grid is None:
            continue
        codewords_of = by_codebook(name, layer.n_codebooks, layer.codewords())
        maps |= {codebook: (layer.grid, codewords) for codebook, codewords in codewords_of.items()}
    return maps


def constant_code_images(
    model: Autoencoder, variables: Mapping[str, Any], varied: str, fixed_codes: Mapping[str, int]
) -> np.ndarray:
    """Returns, for each code, the image decoded from that code at every position (Figures 2 and 7).

    Args:
      model: an autoencoder.
      variables: its variables, of one replica.
      varied: the codebook whose codes are decoded; if a quantiser has several, `<name>_<i>` is its i-th codebook.
      fixed_codes: the code that each other codebook is set to, by name of the codebook.

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
            side, q = max(1, CONSTANT_IMAGE_SIZE // stride), model.quantizers[name].n_codebooks
            columns = [
                code if codebook == varied else np.full_like(code, fixed_codes[codebook])
                for codebook in codebook_names(name, q)
            ]
            column = columns[0] if q is None else np.stack(columns, axis=-1)
            shape = (len(code), side, side, *column.shape[1:])
            codes[name] = np.broadcast_to(column[:, None, None], shape).astype(np.int32)
        images.append(np.asarray(jit_apply(model, variables, codes, "decode")))
    return np.concatenate(images)[:size]


def shifted_reconstructions(
    model: Autoencoder,
    variables: Mapping[str, Any],
    images: np.ndarray,
    offset: int,
    codebooks: Sequence[str] | None = None,
) -> np.ndarray:
    """Returns reconstructions after every code is moved by `offset` along each axis of its grid (Figure 3).

    Codes stop at the border of a grid, or wrap around a torus. If the quantiser has no neighbourhood, the grid has no
    meaning, and `offset` is added to the code itself, as in the paper.

    Args:
      model: an autoencoder.
      variables: its variables, of one replica.
      images: uint8 [n, h, w, 3].
      offset: number of nodes to move.
      codebooks: names of the quantisers whose codes move; all by default.

    Returns:
      uint8 [n, h, w, 3].
    """
    codes = jit_apply(model, variables, images, "encode")
    return np.asarray(_decode_shifted(model, variables, codes, offset, tuple(codebooks or codes)))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _decode_shifted(
    model: Autoencoder, variables: Mapping[str, Any], codes: dict[str, jax.Array], offset: int, names: tuple[str, ...]
) -> jax.Array:
    """Decodes codes after moving the codes of the quantisers `names` by `offset`."""
    shifted = {name: shift_codes(model.quantizers[name], codes[name], offset) for name in names}
    return model.apply(variables, {**codes, **shifted}, method="decode")


def shift_codes(layer: Quantizer, codes: jax.Array, offset: int) -> jax.Array:
    """Moves codes, int32 [...], by `offset` along each axis of their map; without a map, adds `offset` to the codes."""
    grid = layer.grid if layer.is_map else Plane((layer.codebook_size,))
    return grid.shift(codes, offset)


def extra_metrics(model: Autoencoder, variables: Mapping[str, Any], images: np.ndarray) -> dict[str, float]:
    """Returns measures of the order of each map, and the PSNR after codes are changed; see `Model.extra_metrics`.

    Args:
      model: an autoencoder.
      variables: its variables, of one replica.
      images: validation samples, uint8 [n, h, w, 3].

    Returns:
      `trustworthiness` and `neighborhood_preservation` of each map; and, in dB, `perturbation_psnr_<offset>` after all
      codes are moved, and `bit_error_psnr` after 1% of their bits are flipped.
    """
    metrics = {}
    for name, (grid, codewords) in codewords_on_grids(model, variables).items():
        metrics |= {metric + metric_suffix(name): value for metric, value in map_order(codewords, grid).items()}
    for offset in PERTURBATION_OFFSETS:
        shifted = shifted_reconstructions(model, variables, images, offset)
        metrics[f"perturbation_psnr_{offset}"] = float(jnp.mean(measures.psnr(images, shifted)))
    codes, random = jax.device_get(jit_apply(model, variables, images, "encode")), np.random.default_rng(0)
    for name, layer in model.quantizers.items():
        shape = layer.grid.shape if layer.is_map else binary_shape(layer.codebook_size)
        codes[name] = with_bit_errors(codes[name], shape, BIT_ERROR_RATE, random).astype(np.int32)
    received = _decode_shifted(model, variables, codes, 0, tuple(codes))  # a program that exists already
    return metrics | {"bit_error_psnr": float(jnp.mean(measures.psnr(images, received)))}


def codebook_views(model: Autoencoder, variables: Mapping[str, Any], images: np.ndarray) -> dict[str, CodebookView]:
    """Returns a view of each codebook; if a quantiser has several, `<name>_<i>` is its i-th codebook.

    Args:
      model: an autoencoder.
      variables: its variables, of one replica.
      images: validation samples, uint8 [n, h, w, 3].
    """
    codes, layers = {}, {}
    for name, codes_of_layer in apply_in_batches(model, variables, images, "encode").items():
        layer = model.quantizers[name]
        codebook_first = codes_of_layer if layer.n_codebooks is None else np.moveaxis(codes_of_layer, -1, 0)
        split_codes = by_codebook(name, layer.n_codebooks, codebook_first)
        codes, layers = codes | split_codes, layers | dict.fromkeys(split_codes, layer)
    most_used = {name: int(np.bincount(array.ravel()).argmax()) for name, array in codes.items()}
    maps, views = codewords_on_grids(model, variables), {}
    for name, layer in layers.items():
        fixed_codes = {other: code for other, code in most_used.items() if other != name}
        label = codebook_label(name)
        views[name] = CodebookView(
            codes[name],
            layer.codebook_size,
            layer.grid,
            layer.is_map,
            codewords=maps[name][1] if name in maps else None,
            decode_all=functools.partial(constant_code_images, model, variables, name, fixed_codes),
            fixed_codes=fixed_codes,
            label=f"codebook {label}" if label.isdigit() else f"{label} level" if label else "",
        )
    return views


def pictures(
    model: Autoencoder,
    variables: Mapping[str, Any],
    images: np.ndarray,
    sums: Mapping[str, Mapping[str, np.ndarray]],
    step: int,
) -> dict[str, Callable[[pathlib.Path], None]]:
    """Returns functions that draw the pictures of an autoencoder, by name; each writes a PNG file to a path.

    Args:
      model: an autoencoder.
      variables: its variables, of one replica.
      images: validation samples, uint8 [n, h, w, 3].
      sums: evaluation sums by codebook, with `counts` [K].
      step: the training step, for titles.
    """
    from kvae.plots.reconstructions import draw_reconstructions

    def reconstructions(path: pathlib.Path) -> None:
        count = min(NUM_RECONSTRUCTIONS, len(images))
        originals = images[np.linspace(0, len(images) - 1, count).round().astype(int)]
        decoded = np.asarray(jit_apply(model, variables, originals, "reconstruct"))
        title = f"Validation images and their reconstructions after {step} steps"
        draw_reconstructions(path, originals, decoded, title, np.asarray(measures.psnr(originals, decoded)))

    drawings = {"reconstructions": reconstructions}
    for name, view in codebook_views(model, variables, images).items():
        drawings |= _codebook_pictures(name, view, images, np.asarray(sums[name]["counts"]), step)
    return drawings


def _codebook_pictures(
    name: str, view: CodebookView, images: np.ndarray, counts: np.ndarray, step: int
) -> dict[str, Callable[[pathlib.Path], None]]:
    """Returns functions that draw the codebook map, the hit map and, with a grid, the U-matrix of one codebook."""
    from kvae.plots import codebooks

    label = view.label if view.label.startswith("codebook") else f"the {view.label}"
    of_codebook, suffix = f" of {label}" if view.label else "", metric_suffix(name)
    counts = counts.reshape(view.shape)
    part = _most_used_part(counts)

    @functools.cache
    def tiles() -> tuple[np.ndarray, np.ndarray]:
        decoded = view.decode_all()
        return decoded.reshape(*view.shape, *decoded.shape[1:]), view.mean_patches(images)

    def codebook_map(path: pathlib.Path) -> None:
        decoded, patches = tiles()
        title = f"Decoded image of each code{of_codebook}, {view.arrangement}{view.fixed_codes_text} (step {step})"
        codebooks.draw_codebook_map(path, decoded, title, counts, view.cell, patches)

    def codebook_map_part(path: pathlib.Path) -> None:
        decoded, patches = (array[part] for array in tiles())
        rows, columns = (f"{piece.start} to {piece.stop - 1}" for piece in part)
        title = f"The part of the map{of_codebook} with the most uses: rows {rows}, columns {columns} (step {step})"
        origin = (part[0].start, part[1].start)
        codebooks.draw_codebook_map(path, decoded, title, counts[part], view.cell, patches, origin=origin)

    def hit_map(path: pathlib.Path) -> None:
        title = f"Uses of each code{of_codebook} on the validation set (step {step})"
        codebooks.draw_hit_map(path, counts, title, cell=view.cell)

    def u_matrix(path: pathlib.Path) -> None:
        title = (
            f"U-matrix: mean distance of each codeword{of_codebook} to its neighbours, {view.arrangement} (step {step})"
        )
        codebooks.draw_u_matrix(path, view.u_matrix, title, counts, view.cell)

    drawings = {f"codebook_map{suffix}": codebook_map}
    drawings |= {f"codebook_map_part{suffix}": codebook_map_part} if part else {}
    drawings |= {f"hit_map{suffix}": hit_map}
    return drawings | ({f"u_matrix{suffix}": u_matrix} if view.grid is not None else {})


def _most_used_part(counts: np.ndarray) -> tuple[slice, slice] | None:
    """Returns the square of `PART_SIDE` x `PART_SIDE` codes with the most uses; None if the whole grid is legible."""
    if counts.ndim != 2 or max(counts.shape) <= LARGEST_LEGIBLE_SIDE:
        return None
    starts = [np.arange(0, side, PART_SIDE) for side in counts.shape]
    uses = np.add.reduceat(np.add.reduceat(counts, starts[0], axis=0), starts[1], axis=1)
    corner = np.multiply(np.unravel_index(uses.argmax(), uses.shape), PART_SIDE).tolist()
    firsts = (max(0, min(first, side - PART_SIDE)) for first, side in zip(corner, counts.shape, strict=True))
    row, column = (slice(first, min(first + PART_SIDE, side)) for first, side in zip(firsts, counts.shape, strict=True))
    return row, column
