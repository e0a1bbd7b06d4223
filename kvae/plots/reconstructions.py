"""PNG figures of reconstructed images in rows."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from kvae.core.errors import InputError
from kvae.plots.canvas import DPI, MARGIN, png_figure, require_series
from kvae.plots.tiles import add_picture, join_tiles, scale_images, validate_images


def draw_reconstructions(
    path: os.PathLike | str,
    originals: np.ndarray,
    reconstructions: np.ndarray,
    title: str,
    psnr: np.ndarray | None = None,
) -> None:
    """Draws images above their reconstructions.

    Args:
      path: the PNG file.
      originals: uint8 [n, h, w, 3].
      reconstructions: uint8 [n, h, w, 3].
      title: title of the figure.
      psnr: PSNR of each pair in dB, float [n], printed below it; None omits it.

    Raises:
      InputError: an array is not uint8 [n, h, w, 3], or the two arrays differ in shape.
    """
    originals = validate_images("originals", originals, 1)
    reconstructions = validate_images("reconstructions", reconstructions, 1)
    n, h, w, _ = originals.shape
    if originals.shape != reconstructions.shape:
        raise InputError(
            f"reconstructions have the shape {list(reconstructions.shape)}; they must have "
            f"the shape of the originals, {list(originals.shape)}"
        )
    columns = min(n, 8)
    tiles = scale_images(np.concatenate([originals, reconstructions]), 256 if max(h, w) > 128 else 192)
    numbers = np.full((-(-n // columns), 2, columns), -1)
    for i in range(n):
        numbers[i // columns, :, i % columns] = i, n + i
    pictures = [join_tiles(tiles, pair, gap=4) for pair in numbers]
    height, width = (side / DPI for side in pictures[0].shape[:2])
    left, space = 1.05, 0.12 if psnr is None else 0.26
    total = len(numbers) * (height + space)
    note = "" if psnr is None else "Below each pair: PSNR. Higher is better."
    reading = "The model encodes an image as a grid of codes and decodes the codes into an image."
    reading += "" if psnr is None else " PSNR compares pixel by pixel; 6 dB more means half the error."
    with png_figure(path, max(4.5, left + width + MARGIN), total, title, note, reading) as figure:
        for i, (picture, pair) in enumerate(zip(pictures, numbers, strict=True)):
            axes = add_picture(figure, picture, left, total - (i + 1) * (height + space) + space, pair.shape)
            axes.set_yticks([0, 1], ["original", "reconstruction"])
            axes.set_xticks([])
            if psnr is not None:
                in_row = pair[0][pair[0] >= 0]
                axes.set_xticks(range(len(in_row)), [f"{psnr[image]:.1f} dB" for image in in_row])


def draw_offset_reconstructions(
    path: os.PathLike | str, rows: Mapping[str, np.ndarray], offsets: Sequence[int], title: str
) -> None:
    """Draws images decoded after every code is moved on the grid (Figures 3, 8 and 9 of Irie et al., 2023).

    Args:
      path: the PNG file.
      rows: {label: uint8 [n_offsets, h, w, 3]}, with all images of the same size.
      offsets: int [n_offsets], in nodes along each axis of the grid; 0 is the plain reconstruction.
      title: title of the figure.

    Raises:
      InputError: `rows` is empty, or a row is not uint8 [n_offsets, h, w, 3].
    """
    require_series("rows", rows)
    images = [validate_images(label, row, 1) for label, row in rows.items()]
    numbers = np.arange(len(images) * len(offsets)).reshape(len(images), len(offsets))
    side = max(96, min(256, 1500 // len(offsets)))
    picture = join_tiles(scale_images(np.concatenate(images), side), numbers, gap=4)
    height, width = (side / DPI for side in picture.shape[:2])
    names = [label.replace(", ", "\n") for label in rows]
    left, below = 0.25 + 0.06 * max(len(line) for name in names for line in name.splitlines()), 0.4
    with png_figure(path, max(4.5, left + width + 0.13), below + height, title) as figure:
        axes = add_picture(figure, picture, left, below, numbers.shape)
        axes.set_yticks(range(len(images)), names)
        axes.set_xticks(range(len(offsets)), [_signed(offset) for offset in offsets])
        axes.set_xlabel("offset of every code along each axis, in nodes, up to the border (0: as encoded)")


def _signed(offset: int) -> str:
    return f"{offset:+d}".replace("-", "\N{MINUS SIGN}") if offset else "0"
