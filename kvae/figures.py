"""Figures of a run: arrays in, a PNG file out.

Matplotlib is imported only when something is drawn, and only through its object interface: no pyplot, hence no global
figure, no window, nothing to close. Every figure goes through `drawing`, which holds the style and replaces the file
in one step. Images and grid cells are placed pixel by pixel: nothing is resampled twice.
"""

import contextlib
import itertools
import math
import os
import pathlib
import re
import textwrap
from typing import NamedTuple

import numpy as np

from kvae.errors import InputError

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

_MARGIN, _TITLE_LINE, _NOTE_LINE = 0.13, 0.19, 0.15  # inches


@contextlib.contextmanager
def drawing(path, width, height, title, note=""):
    """Gives an empty figure in kvae's style; when the block ends well, it is the PNG file at `path`.

    Args:
      path: the PNG file, replaced in one step: a reader, or a draw that fails, finds the old one whole.
      width: inches.
      height: inches of the drawing; the header adds its own.
      title: what one sees, in a sentence.
      note: a quieter second line: numbers, or how to read the figure.

    Yields:
      A `matplotlib.figure.Figure`, whose subplots are laid out below the header; `place` puts axes at exact places.
    """
    import matplotlib
    from matplotlib.figure import Figure

    titles, notes = _balanced(title, int(width * 10.5)), _balanced(note, int(width * 15))
    header = 2 * _MARGIN + _TITLE_LINE * len(titles) + _NOTE_LINE * len(notes)
    width, total = round(width * DPI) / DPI, round((height + header) * DPI) / DPI
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, total), layout="constrained")
        figure.get_layout_engine().set(rect=(0, 0, 1, height / total), w_pad=0.08, h_pad=0.08, wspace=0.04)
        place_text = {"va": "top", "linespacing": 1.25, "parse_math": False}
        top = 1 - _MARGIN / total
        figure.text(_MARGIN / width, top, "\n".join(titles), size=10, weight="bold", **place_text)
        top -= (_TITLE_LINE * len(titles) + 0.03) / total
        figure.text(_MARGIN / width, top, "\n".join(notes), size=7.5, color=QUIET, **place_text)
        yield figure
        _write(figure, pathlib.Path(path))


def _balanced(text, limit):
    lines = len(textwrap.wrap(text, limit))
    while limit > 1 and len(textwrap.wrap(text, limit - 1)) == lines:
        limit -= 1
    return textwrap.wrap(text, limit)


def _write(figure, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format="png", metadata={"Software": None})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def place(figure, left, bottom, width, height):
    """Adds axes at a place given in inches from the lower left corner, and leaves all layout to the caller."""
    figure.set_layout_engine("none")
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def place_mosaic(figure, picture, left, bottom, numbers):
    """Shows a `mosaic` pixel by pixel at inches from the lower left; its axes count tiles from the upper left."""
    rows, columns = numbers.shape
    axes = place(figure, left, bottom, picture.shape[1] / DPI, picture.shape[0] / DPI)
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
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
        wanted = f"{leading} leading axes, h, w, 3"
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


def _sheet(grid_shape):
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


def _name_ticks(axes, sheet):
    for axis, names, label in zip((axes.yaxis, axes.xaxis), sheet[1:3], sheet.axis_names, strict=True):
        ticks = {i: name for i, name in enumerate(names) if name}
        axis.set_ticks(list(ticks), list(ticks.values()))
        axis.set_label_text(label)


def _cell_size(codes):
    rows, columns = codes.shape
    return max(2, min(120, 1400 // columns, 1400 // rows))


def _draw_tiles(path, tiles, sheet, title, note="", bar=None):
    """Draws one tile uint8 [n, h, w, 3] per code on its sheet, with a colour bar if given (norm, colour map, label)."""
    gap = 1 if max(tiles.shape[1:3]) < 16 else 2
    picture = mosaic(tiles, sheet.codes, gap)
    height, width = (side / DPI for side in picture.shape[:2])
    left, below, beside = 0.62, 0.42, 0.85 if bar else 0.2
    body = max(height, 1.2) if bar else height
    note = "; ".join(filter(None, (note, sheet.note)))
    with drawing(path, max(4.5, left + width + beside), below + body, title, note) as figure:
        axes = place_mosaic(figure, picture, left, below + body - height, sheet.codes)
        _name_ticks(axes, sheet)
        if bar:
            _place_bar(figure, left + width + 0.12, below, body, *bar)


def _place_bar(figure, left, bottom, height, norm, colors, label):
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    axes = place(figure, left, bottom, 0.11, height)
    bar = figure.colorbar(ScalarMappable(norm, colors), cax=axes, label=label)
    bar.outline.set_visible(False)
    plain_ticks(axes.yaxis, *((norm.vmin, norm.vmax) if isinstance(norm, LogNorm) else (1, 1)))


def reconstructions(path, originals, reconstructions, title):
    """Draws images above what the model makes of them.

    Args:
      path: the PNG file.
      originals: uint8 [n, h, w, 3], n at most 32.
      reconstructions: uint8 [n, h, w, 3].
      title: what one sees.
    """
    originals = checked_images("originals", originals, 1)
    reconstructions = checked_images("reconstructions", reconstructions, 1)
    n, h, w, _ = originals.shape
    if originals.shape != reconstructions.shape or n > 32:
        shapes = f"{list(originals.shape)} and {list(reconstructions.shape)}"
        raise InputError(f"reconstructions: want two equal shapes of at most 32 images, found {shapes}")
    columns = min(n, 8)
    tiles = fitted(np.concatenate([originals, reconstructions]), 256 if max(h, w) > 128 else 192)
    numbers = np.full((-(-n // columns), 2, columns), -1)
    for i in range(n):
        numbers[i // columns, :, i % columns] = i, n + i
    pictures = [mosaic(tiles, pair, gap=4) for pair in numbers]
    height, width = (side / DPI for side in pictures[0].shape[:2])
    left, space = 1.05, 0.12
    total = len(numbers) * (height + space)
    with drawing(path, max(4.5, left + width + _MARGIN), total, title) as figure:
        for i, (picture, pair) in enumerate(zip(pictures, numbers, strict=True)):
            axes = place_mosaic(figure, picture, left, total - (i + 1) * (height + space) + space, pair)
            axes.set_yticks([0, 1], ["original", "reconstruction"])
            axes.set_xticks([])


def codebook_map(path, images, title):
    """Draws, for each code, the image it decodes to, at the code's place on the grid (Figures 2 and 7).

    Args:
      path: the PNG file.
      images: uint8 [*grid_shape, h, w, 3]. A line is wrapped; a higher grid is shown slice by slice.
      title: what one sees.
    """
    images = checked_images("images", images, max(1, np.ndim(images) - 3))
    sheet = _sheet(images.shape[:-3])
    tiles = fitted(images.reshape(-1, *images.shape[-3:]), _cell_size(sheet.codes))
    _draw_tiles(path, tiles, sheet, title)


def hit_map(path, counts, title):
    """Draws how often each code is used, on a logarithmic scale; unused codes are striped red.

    Args:
      path: the PNG file.
      counts: int or float [*grid_shape], at least 0.
      title: what one sees.
    """
    import matplotlib
    from matplotlib.colors import LogNorm

    counts = np.asarray(counts, np.float64)
    if not np.all(np.isfinite(counts) & (counts >= 0)):
        raise InputError(f"counts: want finite values of at least 0, found {counts.min()} to {counts.max()}")
    sheet = _sheet(counts.shape)
    used, share = counts[counts > 0], counts[counts > 0] / max(counts.sum(), 1e-30)
    note = f"{used.size} of {counts.size} codes in use"
    note += f", perplexity {np.exp(-np.sum(share * np.log(share))):.1f}" if used.size else ""
    high = used.max(initial=1e-30)
    # At least a factor of thirty, so that codes used about equally also look so.
    low = min(used.min(initial=high), high / 30)
    norm, colors = LogNorm(low, high), _slice_of_colors("YlGnBu", 0.12, 1.0)
    side = _cell_size(sheet.codes)
    tiles = np.empty((counts.size, side, side, 3), np.uint8)
    tiles[:] = colors(norm(np.maximum(counts, low)), bytes=True).reshape(-1, 1, 1, 4)[..., :3]
    stripes = (np.add.outer(np.arange(side), np.arange(side)) // max(1, side // 12)) % 3 > 0
    red = np.array(matplotlib.colors.to_rgb(PALETTE[1])) * 255
    tiles[counts.ravel() == 0] = np.where(stripes[..., None], 255 - 0.15 * (255 - red), red)
    if used.size < counts.size:
        note += " (striped: never used)"
    _draw_tiles(path, tiles, sheet, title, note, (norm, colors, "times used (log scale)"))


def _slice_of_colors(name, low, high):
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps[name](np.linspace(low, high, 256)))


def u_matrix(path, distances, title):
    """Draws the mean distance of each codeword to its neighbours on the grid: valleys are alike, ridges are borders.

    Args:
      path: the PNG file.
      distances: float [*grid_shape], Euclidean, in units of the codewords; NaN is left grey.
      title: what one sees.
    """
    from matplotlib.colors import Normalize

    distances = np.asarray(distances, np.float64)
    sheet = _sheet(distances.shape)
    finite = distances[np.isfinite(distances)]
    low, high = (finite.min(), finite.max()) if finite.size else (0, 1)
    norm, colors = Normalize(low, max(high, low + 1e-12)), _slice_of_colors("bone_r", 0.03, 0.95)
    colors = colors.with_extremes(bad="#B0B0B0")
    side = _cell_size(sheet.codes)
    tiles = np.empty((distances.size, side, side, 3), np.uint8)
    tiles[:] = colors(norm(np.ma.masked_invalid(distances)), bytes=True).reshape(-1, 1, 1, 4)[..., :3]
    note = "light: close to its neighbours; dark: a border between groups of codes"
    _draw_tiles(path, tiles, sheet, title, note, (norm, colors, "mean Euclidean distance to grid neighbours"))


_PANELS = (
    ("Losses", "mean squared error (log scale)", (("reconstruction_loss", ""), ("commitment_loss", "commitment"))),
    ("Loss", "loss (log scale)", (("loss", ""),)),
    ("Reconstruction quality", "PSNR (dB)", (("psnr", ""),)),
    ("How evenly codes are used", "perplexity (effective codes)", (("perplexity", ""),)),
    ("Classes on the map", "neural selectivity", (("neural_selectivity", ""),)),
    ("Codes in use", "codes used at least once", (("codes_used", ""),)),
)


def curves(path, rows, title):
    """Draws how training went: losses, PSNR, perplexity and codes used, for each codebook.

    Args:
      path: the PNG file.
      rows: of metrics.jsonl: `step` and values by name; None is a gap, a list holds one value for each replica.
      title: what one sees.
    """
    panels = []
    for heading, unit, metrics in _PANELS:
        found = [
            (split, f"{name}{suffix.replace('_', ' ')}".strip(), key)
            for metric, name in metrics
            for key in sorted({key for row in rows for key in row})
            for split, suffix in re.findall(rf"^(train|valid)/{metric}((?:_[a-z]+)?)$", key)
        ]
        # `loss` is the sum of what the first panel shows; it stands alone where there is no reconstruction.
        if found and not (heading == "Loss" and panels):
            panels.append((heading, unit, found))
    if not panels:
        raise InputError("rows: want steps with losses, psnr, perplexity or codes_used, found none of them")
    columns = min(2, len(panels))
    height = 2.3 * -(-len(panels) // columns)
    several = any(isinstance(value, list) for row in rows for value in row.values())
    note = "bold: validation; pale: training"
    note += "; thin: single seeds, whose mean breaks off where one has no value" if several else ""
    with drawing(path, 3.6 * columns + 0.2, height, title, note) as figure:
        grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).ravel()
        for axes, (heading, unit, found) in zip(grid, panels, strict=False):
            axes.set(title=heading, ylabel=unit)
            _draw_curves(axes, rows, found)
        for axes in grid[len(panels) :]:
            axes.remove()


def _draw_curves(axes, rows, found):
    names = list(dict.fromkeys(name for _, name, _ in found))
    last, lowest = max(row["step"] for row in rows), np.inf
    for split, name, key in sorted(found, key=lambda series: (names.index(series[1]), series[0])):
        told = [row for row in rows if key in row]
        seeds = max(np.size(row[key]) for row in told)
        values = np.stack([np.broadcast_to(np.asarray(row[key], np.float64), seeds) for row in told])
        steps = np.array([row["step"] for row in told])
        bold = split == "valid"
        color = PALETTE[names.index(name)] if bold else _pale(PALETTE[names.index(name)])
        order = 3 if bold else 2
        if seeds > 1:
            axes.plot(steps, values, linewidth=0.5, alpha=0.5, color=color, zorder=order)
        mean = values.mean(axis=1)
        # A value between two gaps has no line to lie on: it is shown as a dot.
        known = np.concatenate([[False], np.isfinite(mean), [False]])
        alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])
        axes.plot(steps[alone], mean[alone], "o", markersize=3.5, color=color, zorder=order)
        label = ", ".join(filter(None, (name, "validation" if bold else "training")))
        axes.plot(steps, mean, label=label, linewidth=1.7 if bold else 1.3, color=color, zorder=order)
        lowest = min(lowest, np.nanmin(values, initial=np.inf))
    if "log" in axes.get_ylabel() and 0 < lowest < np.inf:
        axes.set_yscale("log")
        plain_ticks(axes.yaxis, *axes.get_ylim())
    axes.set_xlim(0, 1.03 * max(last, 1))
    steps_axis(axes)
    axes.legend(handlelength=1.8)


def _pale(color):
    return "#" + "".join(f"{(int(color[i : i + 2], 16) + 255) // 2:02X}" for i in (1, 3, 5))


def perturbation_curve(path, offsets, values, title):
    """Draws the PSNR of reconstructions when all codes are moved on the grid.

    Args:
      path: the PNG file.
      offsets: int [n], nodes along each axis.
      values: {label: PSNR in dB, [n] or [seeds, n]}; seeds become a mean and a band of one standard deviation.
      title: what one sees.
    """
    refuse_empty("values", values)
    note = "band: one standard deviation over seeds" if any(np.ndim(psnr) > 1 for psnr in values.values()) else ""
    with drawing(path, 5.2, 3.1, title, note) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=QUIET, linewidth=0.6, linestyle=(0, (1, 2)))
        for color, (label, psnr) in zip(itertools.cycle(PALETTE), values.items(), strict=False):
            psnr = by_seed(label, psnr, len(offsets))
            mean_and_band(axes, offsets, psnr, color, label, marker="o", markersize=3.5)
        axes.set(xlabel="nodes by which every code is moved, along each axis of the grid", ylabel="PSNR (dB)")
        axes.set_xticks(offsets)
        axes.legend()


def winners(path, winners, labels, label_names, grid_shape, title):
    """Draws each sample beside the neuron it is won by, coloured by its label (Figures 4 and 6 of URL-SOM).

    Args:
      path: the PNG file.
      winners: int [n], numbers of neurons, row by row on the grid.
      labels: int [n], indices into `label_names`, or None.
      label_names: names of the labels; each is also written where its samples are densest.
      grid_shape: of the map.
      title: what one sees.
    """
    winners = np.asarray(winners)
    size = math.prod(grid_shape)
    if winners.ndim != 1 or not np.issubdtype(winners.dtype, np.integer) or np.any((winners < 0) | (winners >= size)):
        raise InputError(f"winners: want int [n] from 0 to {size - 1}, found {winners.dtype} {list(winners.shape)}")
    kinds = np.zeros(len(winners), int) if labels is None else np.asarray(labels)
    names = [""] if labels is None else list(label_names)
    if kinds.dtype.kind not in "iu" or kinds.shape != winners.shape or np.any((kinds < 0) | (kinds >= len(names))):
        raise InputError(
            f"labels: want int [{len(winners)}] from 0 to {len(names) - 1}, found {kinds.dtype} {list(kinds.shape)}"
        )
    sheet = _sheet(grid_shape)
    rows, columns = sheet.codes.shape
    spots = np.empty(size, int)
    spots[sheet.codes[sheet.codes >= 0]] = np.flatnonzero(sheet.codes >= 0)
    row, column = np.divmod(spots[winners], columns)
    cell = min(6.2 / columns, 6.2 / rows)
    beside = 0.15 if labels is None else 1.15
    active = np.unique(winners).size
    note = f"{len(winners):,} samples, each scattered about its winner; {active} of {size} neurons in use"
    with drawing(path, max(4.5, 0.55 + cell * columns + beside), 0.45 + cell * rows, title, note) as figure:
        axes = place(figure, 0.55, 0.45, cell * columns, cell * rows)
        _scatter(axes, row, column, kinds, names)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        _name_ticks(axes, sheet)


def _scatter(axes, row, column, kinds, names):
    import matplotlib
    from matplotlib.patheffects import withStroke

    colors = np.array([matplotlib.colors.to_rgb(color) for color in PALETTE])
    if len(names) > len(colors):
        colors = matplotlib.colormaps["turbo"](np.linspace(0, 1, len(names)))[:, :3]
    random = np.random.default_rng(0)
    # In random order, so that no class lies on top of the others.
    order = random.permutation(len(row))
    jitter = random.uniform(-0.4, 0.4, (2, len(row)))
    size = np.clip(130_000 / max(len(row), 1), 1, 8)
    axes.scatter((column + jitter[0])[order], (row + jitter[1])[order], s=size, c=colors[kinds[order]], linewidths=0)
    axes.grid(False)
    axes.spines[:].set_visible(True)
    for kind, name in enumerate(names if len(names) > 1 else ()):
        axes.scatter([], [], s=18, color=colors[kind], label=name, linewidths=0)
        spots, hits = np.unique(np.stack([row, column])[:, kinds == kind], axis=1, return_counts=True)
        if not hits.size:
            continue
        near = np.abs(spots[:, :, None] - spots[:, None, :]).max(axis=0) <= 1
        y, x = spots[:, np.argmax(near @ hits)]
        text = axes.text(x, y, name, size=8.5, weight="bold", ha="center", va="center", color=INK)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    if len(names) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2)
