"""Figures of a map, node by node: arrays in, a PNG file out, drawn on `kvae.plots.canvas`."""

import numpy as np

from kvae.core.errors import InputError
from kvae.plots.canvas import (
    DPI,
    PALETTE,
    add_axes,
    add_mosaic,
    checked_images,
    drawing,
    fitted,
    honeycomb,
    mosaic,
    name_ticks,
    plain_ticks,
    rgb,
    sheet,
)

_ORANGE = rgb(PALETTE[1])
"""Marks codes that are never used."""

_MARKS = {"square": "corner", "hexagon": "dot"}


def _panels(codes, count):
    """So many panels, down and across: one below the other where the page is wide."""
    rows, columns = codes.shape
    return (count, 1) if columns > 1.3 * rows else (1, count)


def _cell_size(codes, panels=1):
    (rows, columns), (_, across) = codes.shape, _panels(codes, panels)
    return max(2, min(120, 1400 // (columns * across), 1400 // rows))


def _draw_tiles(path, panels, page, title, note="", reading="", bar=None, cell="square"):
    """Draws one tile uint8 [n, h, w, 3] per code on its page, with a colour bar if given (norm, colour map, label).

    `panels` are tiles by heading; one panel alone has none.
    """
    pictures, (high, wide) = {}, np.max([tiles.shape[1:3] for tiles in panels.values()], axis=0)
    for heading, tiles in panels.items():
        # A code has the same place in every panel: a smaller tile goes on as it ends.
        missing = [(0, 0), *((0, most - own) for most, own in zip((high, wide), tiles.shape[1:3], strict=True)), (0, 0)]
        tiles = np.pad(tiles, missing, mode="edge")
        gap, extent = min(2, max(high, wide) // 8), None
        if cell == "hexagon":
            picture, extent = honeycomb(tiles, page.codes, gap)
        else:
            picture = mosaic(tiles, page.codes, gap)
        pictures[heading] = picture, extent
    height, width = (side / DPI for side in picture.shape[:2])
    left, below, beside, above = 0.62, 0.42, 0.95 if bar else 0.2, 0.25 if len(panels) > 1 else 0
    body = max(height, 1.2) if bar else height
    down, across = _panels(page.codes, len(panels))
    note = "; ".join(filter(None, (note, page.note)))
    size = max(4.5, across * (left + width) + beside), down * (above + body + below)
    with drawing(path, *size, title, note, reading) as figure:
        for i, (heading, (picture, extent)) in enumerate(pictures.items()):
            row, column = divmod(i, across)
            bottom = (down - row) * (above + body + below) - above - height
            axes = add_mosaic(figure, picture, left + column * (left + width), bottom, page.codes, extent)
            name_ticks(axes, page)
            axes.set_title(heading if len(panels) > 1 else "")
            if height < 0.7:
                axes.set_ylabel("")
        if bar:
            _place_bar(figure, left + width + 0.12, below, body, *bar)


def _place_bar(figure, left, bottom, height, norm, colors, label):
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    axes = add_axes(figure, left, bottom, 0.11, height)
    bar = figure.colorbar(ScalarMappable(norm, colors), cax=axes, label=label)
    bar.outline.set_visible(False)
    plain_ticks(axes.yaxis, *((norm.vmin, norm.vmax) if isinstance(norm, LogNorm) else (1, 1)))
    if isinstance(norm, LogNorm):
        # The largest value is named too, and no round number next to it.
        axes.set_yticks([tick for tick in axes.get_yticks() if norm.vmin <= tick < 0.8 * norm.vmax] + [norm.vmax])


def codebook_map(path, images, title, counts=None, cell="square", patches=None, unit="codes", event="used"):
    """Draws, for each code, the image it decodes to, at the code's place on the grid (Figures 2 and 7).

    Args:
      path: the PNG file.
      images: uint8 [*grid_shape, h, w, 3]. A line is wrapped; a higher grid is shown slice by slice.
      title: what one sees.
      counts: how often each code is used, [*grid_shape], if known; codes that never are turn pale.
      cell: how a node is drawn, "square" or "hexagon".
      patches: uint8 [*grid_shape, p, q, 3], the mean patch of real images that each code stands for; drawn beside.
      unit: what the nodes of the grid are called.
      event: what is counted of a node: how often it is used, or winning.
    """
    images = checked_images("images", images, max(1, np.ndim(images) - 3))
    grid_shape = images.shape[:-3]
    page, note = sheet(grid_shape), ""
    reading = f"Each tile is one of the {unit}, at its place on the grid. On a map in order, neighbours look alike"
    room = _cell_size(page.codes, 1 if patches is None else 2)
    tiles = fitted(images.reshape(-1, *images.shape[-3:]), room)
    panels = {"decoded alone": tiles}
    if patches is not None:
        patches = checked_images("patches", patches, len(grid_shape))
        if patches.shape[:-3] != grid_shape:
            raise InputError(f"patches: want one for each code, {list(grid_shape)}, found {list(patches.shape[:-3])}")
        panels["in real images (grey: never)"] = fitted(patches.reshape(-1, *patches.shape[-3:]), room)
        reading += ". In real images: the mean of what was there, the code's own square in the middle"
    if counts is not None:
        unused = _unused(counts, grid_shape)
        note = f"{np.sum(~unused):,} of {unused.size:,} {unit} in use"
        note += f" (pale, with an orange {_MARKS[cell]}: never {event})" if unused.any() else ""
        tiles[unused] = 128 + tiles[unused] // 2
        _mark(tiles, unused, cell)
    _draw_tiles(path, panels, page, title, note, reading, cell=cell)


def _unused(counts, grid_shape):
    """Which codes are never used, bool [K], by counts [*grid_shape]."""
    if np.shape(counts) != tuple(grid_shape):
        raise InputError(f"counts: want one for each code, {list(grid_shape)}, found {list(np.shape(counts))}")
    return np.ravel(counts) == 0


def _mark(tiles, marked, cell):
    """Gives the marked tiles an orange corner, or, where they have none, a dot in their middle, in place."""
    h, w = tiles.shape[1:3]
    rows, columns, size = np.arange(h), np.arange(w), max(1, min(h, w) // 3)
    if cell == "hexagon":
        place = np.hypot.outer(rows - (h - 1) / 2, columns - (w - 1) / 2) <= size / 2
    else:
        place = np.add.outer(rows, columns) < size
    tiles[marked] = np.where(place[..., None], _ORANGE, tiles[marked])


def hit_map(path, counts, title, unit="codes", cell="square", event="used"):
    """Draws how often each code is used, on a logarithmic scale; unused codes are orange, striped if there is room.

    Args:
      path: the PNG file.
      counts: int or float [*grid_shape], at least 0.
      title: what one sees.
      unit, cell, event: as in `codebook_map`.
    """
    from matplotlib.colors import LogNorm

    counts = np.asarray(counts, np.float64)
    if not np.all(np.isfinite(counts) & (counts >= 0)):
        raise InputError(f"counts: want finite values of at least 0, found {counts.min()} to {counts.max()}")
    page = sheet(counts.shape)
    used, share = counts[counts > 0], counts[counts > 0] / max(counts.sum(), 1e-30)
    note = f"{used.size:,} of {counts.size:,} {unit} in use"
    note += f", perplexity {np.exp(-np.sum(share * np.log(share))):,.1f}" if used.size else ""
    # The scale spans a factor of ten or more, and thirty below the most used: codes used about equally look so.
    low = min(used.min(initial=np.inf), max(used.max(initial=0) / 30, 1))
    high = max(used.max(initial=0), 10 * low)
    norm, colors = LogNorm(low, high), _slice_of_colors("YlGnBu", 0.12, 1.0)
    side = _cell_size(page.codes)
    tiles = np.empty((counts.size, side, side, 3), np.uint8)
    tiles[:] = colors(norm(np.maximum(counts.ravel(), low)), bytes=True).reshape(-1, 1, 1, 4)[..., :3]
    stripes = (np.add.outer(np.arange(side), np.arange(side)) // max(1, side // 12)) % 3 > 0
    stripes &= side >= 24
    tiles[counts.ravel() == 0] = np.where(stripes[..., None], 255 - 0.15 * (255 - _ORANGE), _ORANGE)
    if used.size < counts.size:
        note += f" (orange: never {event})"
    reading = f"Dark: {event} often. Perplexity: so many {unit}, {event} equally often, would be as diverse"
    _draw_tiles(path, {"": tiles}, page, title, note, reading, (norm, colors, f"times {event} (log scale)"), cell)


def _slice_of_colors(name, low, high):
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps[name](np.linspace(low, high, 256)))


def u_matrix(path, distances, title, counts=None, cell="square"):
    """Draws the mean distance of each codeword to its neighbours on the grid: valleys are alike, ridges are borders.

    Args:
      path: the PNG file.
      distances: float [*grid_shape], Euclidean, in units of the codewords; NaN is left grey.
      title: what one sees.
      counts: how often each code is used, [*grid_shape], if known: codes that never are get an orange corner.
      cell: as in `codebook_map`.
    """
    from matplotlib.colors import Normalize

    distances = np.asarray(distances, np.float64)
    page = sheet(distances.shape)
    finite = distances[np.isfinite(distances)]
    low, high = (finite.min(), finite.max()) if finite.size else (0, 1)
    norm, colors = Normalize(low, max(high, low + 1e-12)), _slice_of_colors("bone_r", 0.03, 0.95)
    colors = colors.with_extremes(bad="#B0B0B0")
    side = _cell_size(page.codes)
    tiles = np.empty((distances.size, side, side, 3), np.uint8)
    tiles[:] = colors(norm(np.ma.masked_invalid(distances.ravel())), bytes=True).reshape(-1, 1, 1, 4)[..., :3]
    note = "light: close to its neighbours; dark: a border between groups of codes"
    if counts is not None and np.any(unused := _unused(counts, distances.shape)):
        note += f"; orange {_MARKS[cell]}: a code that is never used"
        _mark(tiles, unused, cell)
    reading = "Each tile is one code. Light regions hold codes that mean nearly the same"
    bar = norm, colors, "mean Euclidean distance to grid neighbours"
    _draw_tiles(path, {"": tiles}, page, title, note, reading, bar, cell)
