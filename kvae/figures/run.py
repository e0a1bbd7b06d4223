"""Figures of a run: arrays in, a PNG file out, drawn on `kvae.canvas`."""

import itertools

import numpy as np

from kvae.errors import InputError
from kvae.figures.canvas import (
    DPI,
    MARGIN,
    PALETTE,
    QUIET,
    by_seed,
    checked_images,
    drawing,
    fitted,
    mean_and_band,
    mosaic,
    name_ticks,
    place,
    place_mosaic,
    plain_ticks,
    refuse_empty,
    sheet,
    steps_axis,
)


def _rgb(color):
    """The values, 0 to 255, of a colour such as "#D55E00"."""
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


_ORANGE = _rgb(PALETTE[1])
"""Marks codes that are never used."""


def _cell_size(codes):
    rows, columns = codes.shape
    return max(2, min(120, 1400 // columns, 1400 // rows))


def _draw_tiles(path, tiles, page, title, note="", bar=None):
    """Draws one tile uint8 [n, h, w, 3] per code on its page, with a colour bar if given (norm, colour map, label)."""
    gap = min(2, max(tiles.shape[1:3]) // 8)
    picture = mosaic(tiles, page.codes, gap)
    height, width = (side / DPI for side in picture.shape[:2])
    left, below, beside = 0.62, 0.42, 0.95 if bar else 0.2
    body = max(height, 1.2) if bar else height
    note = "; ".join(filter(None, (note, page.note)))
    with drawing(path, max(4.5, left + width + beside), below + body, title, note) as figure:
        axes = place_mosaic(figure, picture, left, below + body - height, page.codes)
        name_ticks(axes, page)
        if height < 0.7:
            axes.set_ylabel("")
        if bar:
            _place_bar(figure, left + width + 0.12, below, body, *bar)


def _place_bar(figure, left, bottom, height, norm, colors, label):
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    axes = place(figure, left, bottom, 0.11, height)
    bar = figure.colorbar(ScalarMappable(norm, colors), cax=axes, label=label)
    bar.outline.set_visible(False)
    plain_ticks(axes.yaxis, *((norm.vmin, norm.vmax) if isinstance(norm, LogNorm) else (1, 1)))
    if isinstance(norm, LogNorm):
        # The largest value is named too, and no round number next to it.
        axes.set_yticks([tick for tick in axes.get_yticks() if norm.vmin <= tick < 0.8 * norm.vmax] + [norm.vmax])


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
    with drawing(path, max(4.5, left + width + MARGIN), total, title) as figure:
        for i, (picture, pair) in enumerate(zip(pictures, numbers, strict=True)):
            axes = place_mosaic(figure, picture, left, total - (i + 1) * (height + space) + space, pair)
            axes.set_yticks([0, 1], ["original", "reconstruction"])
            axes.set_xticks([])


def codebook_map(path, images, title, counts=None):
    """Draws, for each code, the image it decodes to, at the code's place on the grid (Figures 2 and 7).

    Args:
      path: the PNG file.
      images: uint8 [*grid_shape, h, w, 3]. A line is wrapped; a higher grid is shown slice by slice.
      title: what one sees.
      counts: how often each code is used, [*grid_shape], if known; codes that never are turn pale.
    """
    images = checked_images("images", images, max(1, np.ndim(images) - 3))
    grid_shape = images.shape[:-3]
    page, note = sheet(grid_shape), ""
    tiles = fitted(images.reshape(-1, *images.shape[-3:]), _cell_size(page.codes))
    if counts is not None:
        unused = _unused(counts, grid_shape)
        note = f"{np.sum(~unused):,} of {unused.size:,} codes in use"
        note += " (pale, with an orange corner: never used)" if unused.any() else ""
        tiles[unused] = 128 + tiles[unused] // 2
        _mark(tiles, unused)
    _draw_tiles(path, tiles, page, title, note)


def _unused(counts, grid_shape):
    """Which codes are never used, bool [K], by counts [*grid_shape]."""
    if np.shape(counts) != tuple(grid_shape):
        raise InputError(f"counts: want one for each code, {list(grid_shape)}, found {list(np.shape(counts))}")
    return np.ravel(counts) == 0


def _mark(tiles, marked):
    """Gives the marked tiles an orange corner, in place."""
    h, w = tiles.shape[1:3]
    corner = np.add.outer(np.arange(h), np.arange(w)) < max(1, min(h, w) // 3)
    tiles[marked] = np.where(corner[..., None], _ORANGE, tiles[marked])


def hit_map(path, counts, title, unit="codes"):
    """Draws how often each code is used, on a logarithmic scale; unused codes are orange, striped if there is room.

    Args:
      path: the PNG file.
      counts: int or float [*grid_shape], at least 0.
      title: what one sees.
      unit: what the nodes of the grid are called.
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
    tiles[:] = colors(norm(np.maximum(counts, low)), bytes=True).reshape(-1, 1, 1, 4)[..., :3]
    stripes = (np.add.outer(np.arange(side), np.arange(side)) // max(1, side // 12)) % 3 > 0
    stripes &= side >= 24
    tiles[counts.ravel() == 0] = np.where(stripes[..., None], 255 - 0.15 * (255 - _ORANGE), _ORANGE)
    if used.size < counts.size:
        note += " (orange: never used)"
    _draw_tiles(path, tiles, page, title, note, (norm, colors, "times used (log scale)"))


def _slice_of_colors(name, low, high):
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps[name](np.linspace(low, high, 256)))


def u_matrix(path, distances, title, counts=None):
    """Draws the mean distance of each codeword to its neighbours on the grid: valleys are alike, ridges are borders.

    Args:
      path: the PNG file.
      distances: float [*grid_shape], Euclidean, in units of the codewords; NaN is left grey.
      title: what one sees.
      counts: how often each code is used, [*grid_shape], if known: codes that never are get an orange corner.
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
    tiles[:] = colors(norm(np.ma.masked_invalid(distances)), bytes=True).reshape(-1, 1, 1, 4)[..., :3]
    note = "light: close to its neighbours; dark: a border between groups of codes"
    if counts is not None and np.any(unused := _unused(counts, distances.shape)):
        note += "; orange corner: a code that is never used"
        _mark(tiles, unused)
    _draw_tiles(path, tiles, page, title, note, (norm, colors, "mean Euclidean distance to grid neighbours"))


def curves(path, rows, panels, title):
    """Draws how training went: metrics in training and in validation, in panels.

    Args:
      path: the PNG file.
      rows: of metrics.jsonl: `step` and values by name; None is a gap, a list holds one value for each replica.
      panels: of each the title, the unit, and the (label, metric) pairs that it shows: `train/<metric>` is pale,
        `valid/<metric>` bold.
      title: what one sees.
    """
    known = {key for row in rows for key in row}
    shown = []
    for heading, unit, metrics in panels:
        found = [
            (split, label, f"{split}/{name}")
            for label, name in metrics
            for split in ("train", "valid")
            if f"{split}/{name}" in known
        ]
        if found:
            shown.append((heading, unit, found))
    if not shown:
        raise InputError("rows: want steps with metrics of a panel, found none of them")
    columns = min(2, len(shown))
    height = 2.3 * -(-len(shown) // columns)
    several = [value for row in rows for value in row.values() if isinstance(value, list)]
    note = "bold: validation; pale: training" + "; thin: single seeds" * bool(several)
    note += ", whose mean breaks off where one has no value" if any(None in values for values in several) else ""
    with drawing(path, 3.6 * columns + 0.2, height, title, note) as figure:
        grid = figure.subplots(-(-len(shown) // columns), columns, squeeze=False).ravel()
        for axes, (heading, unit, found) in zip(grid, shown, strict=False):
            axes.set(title=heading, ylabel=unit)
            _draw_curves(axes, rows, found)
        for axes in grid[len(shown) :]:
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
        label = name or ("validation" if bold else "training")
        # Of two lines of one colour the note says which is which.
        if name and not bold and ("valid", name) in {(of, other) for of, other, _ in found}:
            label = None
        axes.plot(steps, mean, label=label, linewidth=1.7 if bold else 1.3, color=color, zorder=order)
        lowest = min(lowest, np.nanmin(values, initial=np.inf))
    if "loss" in axes.get_title(loc="left").lower() and 0 < lowest < np.inf:
        axes.set_ylabel(f"{axes.get_ylabel()} (log scale)")
        axes.set_yscale("log")
        plain_ticks(axes.yaxis, *axes.get_ylim())
    axes.set_xlim(0, 1.03 * max(last, 1))
    steps_axis(axes)
    # Room for the names above the lines.
    scale = axes.yaxis.get_transform()
    bottom, top = axes.get_ylim()
    low, high = scale.transform((bottom, top))
    named = len(axes.get_legend_handles_labels()[1])
    lines = min(2, named)
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= top])
    axes.set_ylim(bottom, scale.inverted().transform(high + 0.2 * lines * (high - low)))
    axes.legend(handlelength=1.8, loc="upper right", ncols=-(-named // lines))


def _pale(color):
    return "#" + "".join(f"{(value + 255) // 2:02X}" for value in _rgb(color))


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
