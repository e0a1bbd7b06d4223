"""The canvas under every figure: style, layout, and a PNG file that is replaced in one step.

Matplotlib is imported only when something is drawn, and only through its object interface: no pyplot, hence no global
figure, no window, nothing to close. Images and grid cells are placed pixel by pixel: nothing is resampled twice.
"""

import contextlib
import itertools
import math
import textwrap
from typing import NamedTuple

import numpy as np

from kvae.core.errors import InputError
from kvae.core.files import replaced

DPI = 200
INK, QUIET, FAINT = "#1A1A1A", "#5F5F5F", "#E4E4E4"

# Okabe and Ito's six, then four found by search: any two stay apart (CIEDE2000 > 10) to any kind of eye.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#221C85", "#A41A18", "#521E28", "#62686C"),
)
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same file on every machine
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
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
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 7.5,
    "text.color": INK,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    **{f"{axis}tick.{name}": value for axis in "xy" for name, value in {"color": QUIET, "labelsize": 7.5}.items()},
    **{f"{axis}tick.{level}.size": size for axis in "xy" for level, size in {"major": 2.5, "minor": 0}.items()},
}

MARGIN, _TITLE_LINE, _NOTE_LINE = 0.13, 0.19, 0.15  # inches


@contextlib.contextmanager
def drawing(path, width, height, title, note="", reading=""):
    """Gives an empty figure in kvae's style; when the block ends well, it is the PNG file at `path`.

    The file carries its words as PNG texts, for pages and for readers who do not see it: `Title`, and `Description`,
    which is the note and the reading.

    Args:
      path: the PNG file, replaced in one step: a reader, or a draw that fails, finds the old one whole.
      width: inches.
      height: inches of the drawing; the header adds its own.
      title: what one sees, in a sentence.
      note: a quieter second line: numbers, or how to read the figure.
      reading: how to read the figure, in a sentence or two that are not drawn.

    Yields:
      A `matplotlib.figure.Figure`, whose subplots are laid out below the header; `place` puts axes at exact places.
    """
    import matplotlib
    from matplotlib.figure import Figure

    titles, notes = _balanced(title, int(width * 10.5)), _balanced(note, int(width * 15))
    header = 2 * MARGIN + _TITLE_LINE * len(titles) + _NOTE_LINE * len(notes)
    width, total = round(width * DPI) / DPI, round((height + header) * DPI) / DPI
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, total), layout="constrained")
        figure.get_layout_engine().set(rect=(0, 0, 1, height / total), w_pad=0.08, h_pad=0.08, wspace=0.04)
        place_text = {"va": "top", "linespacing": 1.25, "parse_math": False}
        top = 1 - MARGIN / total
        figure.text(MARGIN / width, top, "\n".join(titles), size=10, weight="bold", **place_text)
        top -= (_TITLE_LINE * len(titles) + 0.03) / total
        figure.text(MARGIN / width, top, "\n".join(notes), size=7.5, color=QUIET, **place_text)
        yield figure
        description = "".join(f"{words[0].upper()}{words[1:]}. " for words in (note, reading) if words).strip()
        _write(figure, path, {"Title": title, "Description": description})


def _balanced(text, limit):
    lines = len(textwrap.wrap(text, limit))
    while limit > 1 and len(textwrap.wrap(text, limit - 1)) == lines:
        limit -= 1
    return textwrap.wrap(text, limit)


def _write(figure, path, words):
    with replaced(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None, **words})


def add_axes(figure, left, bottom, width, height):
    """Adds axes at a place given in inches from the lower left corner, and leaves all layout to the caller."""
    figure.set_layout_engine("none")
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def add_mosaic(figure, picture, left, bottom, numbers, extent=None):
    """Shows a `mosaic` pixel by pixel at inches from the lower left; its axes count tiles from the upper left."""
    rows, columns = numbers.shape
    axes = add_axes(figure, left, bottom, picture.shape[1] / DPI, picture.shape[0] / DPI)
    extent = extent or (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axes.imshow(picture, extent=extent, aspect="auto", interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.grid(False)
    axes.tick_params(length=0, pad=3)
    return axes


def mosaic(tiles, numbers, gap=2):
    """Lays tiles uint8 [n, h, w, 3] out as `numbers` int [rows, columns] says; -1 leaves a place white."""
    n, h, w, _ = tiles.shape
    padded = np.full((n + 1, h + gap, w + gap, 3), 255, np.uint8)
    padded[:n, :h, :w] = tiles
    rows, columns = numbers.shape
    return padded[numbers].swapaxes(1, 2).reshape(rows * (h + gap), columns * (w + gap), 3)


def honeycomb(tiles, numbers, gap=2):
    """Lays tiles uint8 [n, s, s, 3] out as hexagons, every second row half a tile to the right.

    Returns:
      The picture, and its extent (left, right, bottom, top) where rows and columns are counted.
    """
    rows, columns = numbers.shape
    side = tiles.shape[1]
    width, height = side + gap, round(2 * (side + gap) / math.sqrt(3))
    pitch = round(0.75 * height)
    across = np.abs(np.arange(width) - (width - 1) / 2) / (side / 2)
    up = np.abs(np.arange(height) - (height - 1) / 2) / (side / math.sqrt(3))
    inside = (across <= 1) & (up[:, None] <= 1 - across / 2)
    # A tile is a little lower than its hexagon: it goes on as it begins, above and below.
    tiles = tiles[:, (np.arange(height) - (height - side) // 2) % side][:, :, np.arange(width) % side]
    picture = np.full(((rows - 1) * pitch + height, columns * width + width // 2, 3), 255, np.uint8)
    for row, column in np.ndindex(rows, columns):
        top, left = row * pitch, column * width + (row % 2) * (width // 2)
        place = picture[top : top + height, left : left + width]
        place[inside] = tiles[numbers[row, column]][inside]
    return picture, (-0.5, columns, (len(picture) - height / 2) / pitch, -height / 2 / pitch)


def rgb(color):
    """The values, 0 to 255, of a colour such as "#D55E00"."""
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


def fitted(images, room):
    """Scales uint8 images [n, h, w, 3] so that their longer side fills at most `room` pixels.

    Enlarged by a whole factor, so that the pixels of a tiny image stay squares; reduced by averaging areas.
    """
    from PIL import Image

    h, w = images.shape[1:3]
    if factor := room // max(h, w):
        return images.repeat(factor, axis=1).repeat(factor, axis=2)
    size = max(1, w * room // max(h, w)), max(1, h * room // max(h, w))
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in images])


def checked_images(name, images, leading):
    """Returns `images` as an array; raises `InputError` unless it is uint8 [*leading axes, h, w, 3] and not empty."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != leading + 3 or images.shape[-1] != 3 or not images.size:
        wanted = ", ".join(["n"] * leading + ["h", "w", "3"])
        raise InputError(f"{name}: want images uint8 [{wanted}], found {images.dtype} {list(images.shape)}")
    return images


def refuse_empty(name, values):
    """Raises `InputError` where there is nothing to draw."""
    if not values:
        raise InputError(f"{name}: want at least one series to draw, found none")


def by_seed(name, values, points):
    """Returns values float [seeds, points] from [points] or [seeds, points], None as NaN; else raises `InputError`."""
    values = np.atleast_2d(np.asarray(values, np.float64))
    if values.ndim != 2 or values.shape[1] != points or not values.size:
        raise InputError(f"{name}: want [{points}] or [seeds, {points}] values, found {list(values.shape)}")
    return values


def mean_and_band(axes, x, values, color, label, **line):
    """Draws the mean of values [seeds, points] over seeds, and a band of one sample standard deviation about it."""
    mean = values.mean(axis=0)
    if len(values) > 1:
        std = values.std(axis=0, ddof=1)
        axes.fill_between(x, mean - std, mean + std, color=color, alpha=0.18, linewidth=0)
    axes.plot(x, mean, color=color, label=label, linewidth=1.6, **line)


def labelled_curves(axes, x, values, **line):
    """Draws a `mean_and_band` for each label of {label: [n] or [seeds, n]}, in the colours of the palette."""
    for color, (label, of_label) in zip(itertools.cycle(PALETTE), values.items(), strict=False):
        mean_and_band(axes, x, by_seed(label, of_label, len(x)), color, label, **line)


def steps_axis(axes):
    """Labels an x axis of training steps: 500, 2k, 30k."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("training steps")


def plain_ticks(axis, low, high):
    """Names round numbers, in plain figures, on an axis that is logarithmic from `low` to `high`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    # Over less than a decade there are too few round powers to name.
    ratio = high / low
    axis.set_major_locator(MaxNLocator(5) if ratio < 8 else LogLocator(subs=(1,) if ratio > 1000 else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(NullLocator())


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
    """Lays a grid on paper: a line is wrapped into rows, a grid of more than two axes is cut into slices."""
    size = math.prod(grid_shape)
    if not size or not grid_shape:
        raise InputError(f"grid_shape: want at least one axis, all positive, found {list(grid_shape)}")
    numbers = np.arange(size)
    if len(grid_shape) == 1:
        columns = size if size <= 16 else 2 ** round(math.log2(2 * size) / 2)
        starts = range(0, size, columns)
        codes = np.full(len(starts) * columns, -1)
        codes[:size] = numbers
        note = "" if len(starts) == 1 else f"a line of {size} codes: each row continues the one above"
        axis_names = ("first code of the row", "place in the row") if len(starts) > 1 else ("", "code")
        row_names = _names(starts) if len(starts) > 1 else [""]
        return _Sheet(codes.reshape(-1, columns), row_names, _names(range(columns)), axis_names, note)
    *outer, rows, columns = grid_shape
    slices = numbers.reshape(-1, rows, columns)
    across = min(len(slices), max(1, round(math.sqrt(2 * len(slices) * rows / columns))))
    down = -(-len(slices) // across)
    codes = np.full((down, rows + 1, across, columns + 1), -1)
    for i, piece in enumerate(slices):
        codes[i // across, :rows, i % across, :columns] = piece
    codes = codes.reshape(down * (rows + 1), across * (columns + 1))[:-1, :-1]
    row_names, column_names = ([*_names(range(n)), ""] * copies for n, copies in ((rows, down), (columns, across)))
    shape = " by ".join(map(str, grid_shape))
    note = f"a grid of {shape}: its {len(slices)} slices in reading order" if outer else ""
    return _Sheet(codes, row_names[:-1], column_names[:-1], ("grid row", "grid column"), note)


def name_ticks(axes, sheet):
    """Names the rows and columns of a sheet on axes that count its cells."""
    for axis, names, label in zip((axes.yaxis, axes.xaxis), sheet[1:3], sheet.axis_names, strict=True):
        ticks = {i: name for i, name in enumerate(names) if name}
        axis.set_ticks(list(ticks), list(ticks.values()))
        axis.set_label_text(label)
