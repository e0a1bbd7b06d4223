"""PNG figures of a codebook, with a cell for each node of its grid."""

import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from kvae.measures import attainable_codes
from kvae.plots.canvas import DPI, PALETTE, add_axes, color_limits, png_figure
from kvae.plots.curves import format_log_axis
from kvae.plots.tiles import (
    GridLayout,
    add_picture,
    hex_to_rgb,
    join_hexagons,
    join_tiles,
    label_cells,
    lay_out_grid,
    scale_images,
    validate_images,
)

_ORANGE = hex_to_rgb(PALETTE[1])
"""Colour of codes that are never used."""

_MARKS = {"square": "corner", "hexagon": "dot"}

_SMALLEST_MARKED = 6
"""Side in pixels of the smallest tile that is marked; on smaller ones, marks would hide the colours of the codes."""


def usage_note(counts: ArrayLike, unit: str = "codes") -> str:
    """Returns a note with the number of codes in use, N, and how many codes N vectors use if all are equally likely.

    Example:
      >>> usage_note([7, 0, 3]), usage_note([1, 0, 1])
      ('2 of 3 codes in use (N = 10)', '2 of 3 codes in use (N = 2; about 1 if equally likely)')

    Args:
      counts: number of uses of each code, of any shape.
      unit: name of the nodes, such as "neurons".
    """
    size, used, total = np.size(counts), np.count_nonzero(counts), int(np.sum(counts))
    attainable = round(attainable_codes(size, total))
    limit = f"; about {attainable:,} if equally likely" if attainable < size else ""
    return f"{used:,} of {size:,} {unit} in use (N = {total:,}{limit})"


def draw_codebook_map(
    path: os.PathLike | str,
    images: np.ndarray,
    title: str,
    counts: ArrayLike | None = None,
    cell: str = "square",
    patches: np.ndarray | None = None,
    unit: str = "codes",
    usage: str = "used",
    origin: tuple[int, int] = (0, 0),
) -> None:
    """Draws the decoded image of each code at the code's node of the grid (Figures 2 and 7 of Irie et al., 2023).

    Args:
      path: the PNG file.
      images: uint8 [*grid_shape, h, w, 3]. A line is wrapped; a grid of more than two axes is cut into slices.
      title: title of the figure.
      counts: number of uses of each code, [*grid_shape]. Codes that are never used are drawn pale and, unless tiles are
        tiny as for 256 x 256 codes, marked.
      cell: shape of a node, "square" or "hexagon".
      patches: uint8 [*grid_shape, p, q, 3], the mean patch of real images that each code encodes, for a second panel.
      unit: plural name of the nodes in the caption, such as "neurons".
      usage: word for "used" in the caption, such as "winning" in "never winning".
      origin: row and column of the first code, if `images` are a part of a grid with two axes.

    Raises:
      InputError: `images` is not uint8 [*grid_shape, h, w, 3], or `patches` is not uint8 [*grid_shape, p, q, 3].
    """
    images = validate_images("images", images, max(1, np.ndim(images) - 3))
    grid_shape = images.shape[:-3]
    layout, note = lay_out_grid(grid_shape, origin), ""
    reading = f"Each tile is one of the {unit}, at its node of the grid. On an ordered map, neighbours look similar."
    side = _tile_side(layout, 1 if patches is None else 2)
    tiles = scale_images(images.reshape(-1, *images.shape[-3:]), side)
    panels = {"decoded alone": tiles}
    if patches is not None:
        panels["in real images (grey: never)"] = scale_images(patches.reshape(-1, *patches.shape[-3:]), side)
        reading += " In real images: the mean of the patches around each use of a code; the code covers the middle."
    if counts is not None:
        unused = np.ravel(counts) == 0
        note = usage_note(counts, unit)
        tiles[unused] = 128 + tiles[unused] // 2
        mark = ""
        if side >= _SMALLEST_MARKED:
            _mark(tiles, unused, cell)
            mark = f", with an orange {_MARKS[cell]}"
        note += f". Pale{mark}: never {usage}." if unused.any() else "."
    _draw_tiles(path, panels, layout, title, note, reading, cell=cell)


def draw_hit_map(
    path: os.PathLike | str,
    counts: ArrayLike,
    title: str,
    unit: str = "codes",
    cell: str = "square",
    usage: str = "used",
) -> None:
    """Draws how often each code is used, on a logarithmic scale. Unused codes are orange, striped if there is room.

    Args:
      path: the PNG file.
      counts: int or float [*grid_shape], at least 0.
      title: title of the figure.
      unit, cell, usage: as in `draw_codebook_map`.
    """
    from matplotlib.colors import LogNorm

    counts = np.asarray(counts, np.float64)
    layout = lay_out_grid(counts.shape)
    used, share = counts[counts > 0], counts[counts > 0] / max(counts.sum(), 1e-30)
    note = usage_note(counts, unit)
    note += f", perplexity {np.exp(-np.sum(share * np.log(share))):,.1f}" if used.size else ""
    # The scale spans at least a factor of 10 below the largest count, so that similar counts have similar colours.
    low = min(used.min(initial=np.inf), max(used.max(initial=0) / 30, 1))
    high = max(used.max(initial=0), 10 * low)
    norm, colors = LogNorm(low, high), _color_range("YlGnBu", 0.12, 1.0)
    side = _tile_side(layout)
    tiles = np.empty((counts.size, side, side, 3), np.uint8)
    tiles[:] = colors(norm(np.maximum(counts.ravel(), low)), bytes=True).reshape(-1, 1, 1, 4)[..., :3]
    stripes = (np.add.outer(np.arange(side), np.arange(side)) // max(1, side // 12)) % 3 > 0
    stripes &= side >= 24
    tiles[counts.ravel() == 0] = np.where(stripes[..., None], 255 - 0.15 * (255 - _ORANGE), _ORANGE)
    note += f". Orange: never {usage}." if used.size < counts.size else "."
    reading = f"Dark: {usage} often. N is the sum of all counts. "
    reading += f"Perplexity: the effective number of {unit} in use."
    _draw_tiles(path, {"": tiles}, layout, title, note, reading, (norm, colors, "count (log scale)"), cell)


def draw_u_matrix(
    path: os.PathLike | str,
    distances: ArrayLike,
    title: str,
    counts: ArrayLike | None = None,
    cell: str = "square",
) -> None:
    """Draws the mean distance from each codeword to its grid neighbours. Dark ridges separate groups of codes.

    Args:
      path: the PNG file.
      distances: float [*grid_shape], Euclidean, in units of the codewords; NaN is drawn grey.
      title: title of the figure.
      counts: number of uses of each code, [*grid_shape]. Codes that are never used are marked.
      cell: as in `draw_codebook_map`.
    """
    from matplotlib.colors import Normalize

    distances = np.asarray(distances, np.float64)
    layout = lay_out_grid(distances.shape)
    finite = distances[np.isfinite(distances)]
    norm, colors = Normalize(*color_limits(finite)), _color_range("bone_r", 0.03, 0.95)
    colors = colors.with_extremes(bad="#B0B0B0")
    side = _tile_side(layout)
    tiles = np.empty((distances.size, side, side, 3), np.uint8)
    tiles[:] = colors(norm(np.ma.masked_invalid(distances.ravel())), bytes=True).reshape(-1, 1, 1, 4)[..., :3]
    note = "Light: close to its neighbours. Dark: a border between groups of codes."
    if counts is not None and np.any(unused := np.ravel(counts) == 0):
        note += f" Orange {_MARKS[cell]}: never used."
        _mark(tiles, unused, cell)
    reading = "Each tile is one code. The codes of a light region have similar codewords."
    bar = norm, colors, "mean Euclidean distance to grid neighbours"
    _draw_tiles(path, {"": tiles}, layout, title, note, reading, bar, cell)


def _mark(tiles: np.ndarray, marked: np.ndarray, cell: str) -> None:
    """Draws an orange corner, or a dot in hexagons, on the marked tiles, in place."""
    h, w = tiles.shape[1:3]
    rows, columns, size = np.arange(h), np.arange(w), max(1, min(h, w) // 3)
    if cell == "hexagon":
        inside = np.hypot.outer(rows - (h - 1) / 2, columns - (w - 1) / 2) <= size / 2
    else:
        inside = np.add.outer(rows, columns) < size
    tiles[marked] = np.where(inside[..., None], _ORANGE, tiles[marked])


def _color_range(name: str, low: float, high: float):
    """Returns the part of a colour map from `low` to `high`, which are fractions of its length."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps[name](np.linspace(low, high, 256)))


def _arrange_panels(codes: np.ndarray, count: int) -> tuple[int, int]:
    """Returns the numbers of rows and columns of panels. Wide grids are placed below each other."""
    rows, columns = codes.shape
    return (count, 1) if columns > 1.3 * rows else (1, count)


def _tile_side(layout: GridLayout, panels: int = 1) -> int:
    """Returns the side of a tile in pixels, such that the page is at most 1,400 pixels wide and high."""
    (rows, columns), (_, across) = layout.codes.shape, _arrange_panels(layout.codes, panels)
    return max(2, min(120, 1400 // (columns * across), 1400 // rows))


def _draw_tiles(
    path, panels: Mapping[str, np.ndarray], layout: GridLayout, title, note="", reading="", bar=None, cell="square"
):
    """Draws one tile per code at its cell of the layout.

    Args:
      path, title, note, reading: as in `png_figure`.
      panels: {heading: tiles, uint8 [K, h, w, 3]}; a single panel has no heading.
      layout: layout of the grid.
      bar: norm, colour map and label of a colour bar; None omits the bar.
      cell: "square" or "hexagon".
    """
    pictures, (high, wide) = {}, np.max([tiles.shape[1:3] for tiles in panels.values()], axis=0)
    for heading, tiles in panels.items():
        # Smaller tiles are padded with their edge, so that a code has the same position in every panel.
        padding = [(0, 0), (0, high - tiles.shape[1]), (0, wide - tiles.shape[2]), (0, 0)]
        tiles = np.pad(tiles, padding, mode="edge")
        gap, extent = min(2, max(high, wide) // 8), None
        if cell == "hexagon":
            picture, extent = join_hexagons(tiles, layout.codes, gap)
        else:
            picture = join_tiles(tiles, layout.codes, gap)
        pictures[heading] = picture, extent
    height, width = (side / DPI for side in picture.shape[:2])
    left, below, right, above = 0.62, 0.42, 0.95 if bar else 0.2, 0.25 if len(panels) > 1 else 0
    body = max(height, 1.2) if bar else height
    down, across = _arrange_panels(layout.codes, len(panels))
    size = max(4.5, across * (left + width) + right), down * (above + body + below)
    with png_figure(path, *size, title, f"{note} {layout.note}".strip(), reading) as figure:
        for i, (heading, (picture, extent)) in enumerate(pictures.items()):
            row, column = divmod(i, across)
            bottom = (down - row) * (above + body + below) - above - height
            axes = add_picture(figure, picture, left + column * (left + width), bottom, layout.codes.shape, extent)
            label_cells(axes, layout)
            axes.set_title(heading if len(panels) > 1 else "")
            if height < 0.7:
                axes.set_ylabel("")
        if bar:
            _add_color_bar(figure, left + width + 0.12, below, body, *bar)


def _add_color_bar(figure, left, bottom, height, norm, colors, label):
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    axes = add_axes(figure, left, bottom, 0.11, height)
    bar = figure.colorbar(ScalarMappable(norm, colors), cax=axes, label=label)
    bar.outline.set_visible(False)
    format_log_axis(axes.yaxis, *((norm.vmin, norm.vmax) if isinstance(norm, LogNorm) else (1, 1)))
    if isinstance(norm, LogNorm):
        # Also label the largest value, and remove labels close to it.
        axes.set_yticks([tick for tick in axes.get_yticks() if norm.vmin <= tick < 0.8 * norm.vmax] + [norm.vmax])
