"""Figures of a run: arrays in, a PNG file out.

Matplotlib is imported only when something is drawn, and only through its object interface: no pyplot, hence no global
figure, no window and nothing to close. Every figure goes through `drawing`, which holds the style and replaces the file in
one step. Images and grid cells are placed pixel by pixel, so that nothing is resampled twice.
"""

import contextlib
import math
import os
import pathlib
import re
import textwrap
from typing import NamedTuple

import numpy as np

from kvae.errors import InputError

DPI = 200

# Okabe and Ito's six, then four found by search: any two stay apart (CIEDE2000 > 10) for every kind of colour blindness.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#10308A", "#99250D", "#5A3847", "#D9C79E"),
)
INK, QUIET, FAINT, ALARM = "#1A1A1A", "#5F5F5F", "#E4E4E4", "#D55E00"

STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same file on every machine
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "savefig.dpi": DPI,
    "figure.dpi": DPI,
}

_MARGIN, _TITLE_LINE, _NOTE_LINE = 0.13, 0.19, 0.15  # inches


@contextlib.contextmanager
def drawing(path, width, height, title, note=""):
    """Gives an empty figure in kvae's style; when the block ends well, it is the PNG file at `path`.

    The file is replaced in one step: a reader, or a draw that fails, finds the old one whole.

    Args:
      path: the PNG file; missing folders above it are made.
      width: inches.
      height: inches of the drawing; the header adds its own.
      title: what one sees, in a sentence.
      note: a quieter second line: numbers, or how to read the figure.

    Yields:
      A `matplotlib.figure.Figure`. Subplots are laid out below the header; `place` puts axes at inches from the lower left.
    """
    import matplotlib
    from matplotlib.figure import Figure

    titles = textwrap.wrap(title, int(width * 10))
    notes = textwrap.wrap(note, int(width * 14.5))
    header = 2 * _MARGIN + _TITLE_LINE * len(titles) + _NOTE_LINE * len(notes)
    total = round((height + header) * DPI) / DPI
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(round(width * DPI) / DPI, total), layout="constrained")
        figure.get_layout_engine().set(rect=(0, 0, 1, height / total), w_pad=0.08, h_pad=0.08, wspace=0.04)
        left, top = _MARGIN / width, 1 - _MARGIN / total
        words = {"va": "top", "linespacing": 1.25, "parse_math": False}
        figure.text(left, top, "\n".join(titles), size=10, weight="bold", **words)
        top -= (_TITLE_LINE * len(titles) + 0.03) / total
        figure.text(left, top, "\n".join(notes), size=7.5, color=QUIET, **words)
        yield figure
        _write(figure, pathlib.Path(path))


def _write(figure, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format="png", metadata={"Software": None})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def place(figure, left, bottom, width, height):
    """Adds axes at a place given in inches from the lower left corner of the figure."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def checked_images(name, images, dimensions):
    """Returns `images` as an array, or raises `InputError` unless it is uint8 [..., h, w, 3] of that many dimensions."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != dimensions or images.shape[-1] != 3 or not images.size:
        wanted = ", ".join(["n"] * (dimensions - 3) + ["h", "w", "3"])
        raise InputError(f"{name}: want images uint8 [{wanted}], found {images.dtype} {list(images.shape)}")
    return images


def fitted(images, room):
    """Scales uint8 images [n, h, w, 3] so that the longer side fills at most `room` pixels.

    Enlarged by a whole factor, so that the pixels of a tiny image stay squares; reduced by averaging areas.
    """
    from PIL import Image

    h, w = images.shape[1:3]
    factor = room // max(h, w)
    if factor:
        return images.repeat(factor, axis=1).repeat(factor, axis=2)
    size = max(1, w * room // max(h, w)), max(1, h * room // max(h, w))
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in images])


def mosaic(tiles, numbers, gap=2):
    """Lays tiles uint8 [n, h, w, 3] out as `numbers` int [rows, columns] says; -1 leaves a place white."""
    n, h, w, _ = tiles.shape
    padded = np.full((n + 1, h + gap, w + gap, 3), 255, np.uint8)
    padded[:n, :h, :w] = tiles
    rows, columns = numbers.shape
    return padded[numbers].swapaxes(1, 2).reshape(rows * (h + gap), columns * (w + gap), 3)


def place_mosaic(figure, picture, left, bottom, numbers):
    """Shows a mosaic pixel by pixel at inches from the lower left; its axes count tiles from the upper left."""
    rows, columns = numbers.shape
    axes = place(figure, left, bottom, picture.shape[1] / DPI, picture.shape[0] / DPI)
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axes.imshow(picture, extent=extent, aspect="auto", interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.grid(False)
    axes.tick_params(length=0, pad=3)
    return axes


def reconstructions(path, originals, reconstructions, title):
    """Draws images above what the model makes of them.

    Args:
      path: the PNG file.
      originals: uint8 [n, h, w, 3], n at most 32.
      reconstructions: uint8 [n, h, w, 3].
      title: what one sees.

    Raises:
      InputError: the arrays are not such images, or not alike in shape.
    """
    originals = checked_images("originals", originals, 4)
    reconstructions = checked_images("reconstructions", reconstructions, 4)
    n = len(originals)
    if originals.shape != reconstructions.shape or n > 32:
        shapes = f"{list(originals.shape)} and {list(reconstructions.shape)}"
        raise InputError(f"reconstructions: want two equal shapes of at most 32 images, found {shapes}")
    columns = min(n, 8)
    tiles = fitted(np.concatenate([originals, reconstructions]), 256 if max(originals.shape[1:3]) > 128 else 192)
    blocks = []
    for start in range(0, n, columns):
        numbers = np.full((2, columns), -1)
        stop = min(start + columns, n)
        numbers[:, : stop - start] = np.arange(start, stop) + [[0], [n]]
        blocks.append(numbers)
    height, width = mosaic(tiles, blocks[0], gap=4).shape[:2]
    left, space = 1.0, 0.14
    total = len(blocks) * (height / DPI + space)
    with drawing(path, max(4.5, left + width / DPI + _MARGIN), total, title) as figure:
        for i, numbers in enumerate(blocks):
            bottom = total - (i + 1) * (height / DPI + space) + space
            axes = place_mosaic(figure, mosaic(tiles, numbers, gap=4), left, bottom, numbers)
            axes.set_yticks([0, 1], ["original", "rebuilt\nfrom codes"])
            axes.set_xticks([])


class _Sheet(NamedTuple):
    """A grid of any dimension, laid on paper."""

    codes: np.ndarray  # int [rows, columns]; -1 where no code stands
    row_names: list[str]  # "" where no tick stands
    column_names: list[str]
    axis_names: tuple[str, str]
    note: str


def _names(numbers):
    step = 2 ** max(0, math.ceil(math.log2(len(numbers) / 16)))
    return [str(number) if i % step == 0 else "" for i, number in enumerate(numbers)]


def sheet(grid_shape):
    """Lays the codes of a grid on paper: a line is wrapped, slices of a higher grid stand side by side."""
    size = math.prod(grid_shape)
    numbers = np.arange(size)
    if len(grid_shape) == 1:
        columns = size if size <= 16 else 2 ** round(math.log2(2 * size) / 2)
        starts = range(0, size, columns)
        codes = np.full(len(starts) * columns, -1)
        codes[:size] = numbers
        note = "" if len(starts) == 1 else f"a line of {size} codes: each row continues the one above"
        axis_names = ("first code of the row", "place in the row")
        return _Sheet(codes.reshape(-1, columns), _names(starts), _names(range(columns)), axis_names, note)
    *outer, rows, columns = grid_shape
    slices = numbers.reshape(-1, rows, columns)
    across = min(len(slices), max(1, round(math.sqrt(2 * len(slices) * rows / columns))))
    down = -(-len(slices) // across)
    codes = np.full((down, rows + 1, across, columns + 1), -1)
    for i, piece in enumerate(slices):
        codes[i // across, :rows, i % across, :columns] = piece
    codes = codes.reshape(down * (rows + 1), across * (columns + 1))[:-1, :-1]
    row_names = ([*_names(range(rows)), ""] * down)[:-1]
    column_names = ([*_names(range(columns)), ""] * across)[:-1]
    shape = " × ".join(map(str, grid_shape))
    note = f"a grid of {shape}: its {len(slices)} slices in reading order" if outer else ""
    return _Sheet(codes, row_names, column_names, ("grid row", "grid column"), note)
