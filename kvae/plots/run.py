"""Figures of a run: arrays in, a PNG file out, drawn on `kvae.plots.canvas`."""

import itertools

import numpy as np

from kvae.core.errors import InputError
from kvae.plots.canvas import (
    DPI,
    MARGIN,
    PALETTE,
    QUIET,
    add_mosaic,
    by_seed,
    checked_images,
    drawing,
    fitted,
    labelled_curves,
    mean_and_band,
    mosaic,
    plain_ticks,
    refuse_empty,
    rgb,
    steps_axis,
)


def reconstructions(path, originals, reconstructions, title, psnr=None):
    """Draws images above what the model makes of them, and how close that is.

    Args:
      path: the PNG file.
      originals: uint8 [n, h, w, 3], n at most 32.
      reconstructions: uint8 [n, h, w, 3].
      title: what one sees.
      psnr: of each pair, float [n], in dB, if it is to be shown.
    """
    originals = checked_images("originals", originals, 1)
    reconstructions = checked_images("reconstructions", reconstructions, 1)
    n, h, w, _ = originals.shape
    if originals.shape != reconstructions.shape or n > 32:
        shapes = f"{list(originals.shape)} and {list(reconstructions.shape)}"
        raise InputError(f"reconstructions: want two equal shapes of at most 32 images, found {shapes}")
    if psnr is not None and np.shape(psnr) != (n,):
        raise InputError(f"psnr: want one for each of {n} images, found {list(np.shape(psnr))}")
    columns = min(n, 8)
    tiles = fitted(np.concatenate([originals, reconstructions]), 256 if max(h, w) > 128 else 192)
    numbers = np.full((-(-n // columns), 2, columns), -1)
    for i in range(n):
        numbers[i // columns, :, i % columns] = i, n + i
    pictures = [mosaic(tiles, pair, gap=4) for pair in numbers]
    height, width = (side / DPI for side in pictures[0].shape[:2])
    left, space = 1.05, 0.12 if psnr is None else 0.26
    total = len(numbers) * (height + space)
    note = "" if psnr is None else "below each pair: PSNR, higher is closer"
    reading = "The model turns an image into codes, a number for each small square, and those back into an image"
    reading += "" if psnr is None else ". PSNR compares pixel by pixel: 6 dB more is half the error"
    with drawing(path, max(4.5, left + width + MARGIN), total, title, note, reading) as figure:
        for i, (picture, pair) in enumerate(zip(pictures, numbers, strict=True)):
            axes = add_mosaic(figure, picture, left, total - (i + 1) * (height + space) + space, pair)
            axes.set_yticks([0, 1], ["original", "reconstruction"])
            axes.set_xticks([])
            if psnr is not None:
                shown = pair[0][pair[0] >= 0]
                axes.set_xticks(range(len(shown)), [f"{psnr[image]:.1f} dB" for image in shown])


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
    reading = "One panel for each measure, over the steps of training"
    with drawing(path, 3.6 * columns + 0.2, height, title, note, reading) as figure:
        grid = figure.subplots(-(-len(shown) // columns), columns, squeeze=False).ravel()
        for axes, (heading, unit, found) in zip(grid, shown, strict=False):
            axes.set(title=heading, ylabel=unit)
            _draw_curves(axes, rows, found)
        for axes in grid[len(shown) :]:
            axes.remove()


def comparison(path, panels, title):
    """Draws the metrics of several runs, a panel for each metric.

    Args:
      path: the PNG file.
      panels: {(title, unit): {label: (steps [n], values [n] or [seeds, n])}}.
      title: what one sees.
    """
    refuse_empty("panels", panels)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    colors = dict(zip(labels, itertools.cycle(PALETTE), strict=False))
    columns = min(2, len(panels))
    several = any(np.ndim(values) > 1 and len(values) > 1 for lines in panels.values() for _, values in lines.values())
    note = "line: mean over seeds; band: one standard deviation" if several else ""
    height = 2.2 * -(-len(panels) // columns) + 0.2 * len(labels)
    with drawing(path, 3.6 * columns + 0.2, height, title, note) as figure:
        grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).ravel()
        for axes, ((heading, unit), lines) in zip(grid, panels.items(), strict=False):
            axes.set(title=heading, ylabel=unit)
            for label, (steps, values) in lines.items():
                marker = {"marker": "o", "markersize": 3} if len(steps) == 1 else {}
                mean_and_band(axes, steps, by_seed(label, values, len(steps)), colors[label], label, **marker)
            steps_axis(axes)
        for axes in grid[len(panels) :]:
            axes.remove()
        handles, names = grid[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=1)


def _draw_curves(axes, rows, found):
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(name for _, name, _ in found))
    last, lowest, are_counts = max(row["step"] for row in rows), np.inf, True
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
        are_counts &= bool(np.all(values[np.isfinite(values)] % 1 == 0))
    if are_counts:
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
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
    return "#" + "".join(f"{(value + 255) // 2:02X}" for value in rgb(color))


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
        labelled_curves(axes, offsets, values, marker="o", markersize=3.5)
        axes.set(xlabel="nodes by which every code is moved, along each axis of the grid", ylabel="PSNR (dB)")
        axes.set_xticks(offsets)
        axes.legend()
