"""Figures of the papers, from arrays: each is drawn like its original, on `kvae.canvas`."""

import itertools

import numpy as np

from kvae.core.errors import InputError
from kvae.plots.canvas import (
    DPI,
    FAINT,
    INK,
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
    steps_axis,
)


def initialisation(path, losses, title, name="validation reconstruction loss"):
    """Draws the loss of every seed, for each initialisation of the counts (Figure 1).

    Args:
      path: the PNG file.
      losses: {label: (steps int [n], loss [n] or [seeds, n])}.
      title: what one sees.
      name: which loss it is.
    """
    refuse_empty("losses", losses)
    with drawing(path, 5.6, 3.2, title, "one line per seed; on the scale of normalised images") as figure:
        axes = figure.subplots()
        for color, (label, (steps, values)) in zip(itertools.cycle(PALETTE), losses.items(), strict=False):
            values = by_seed(label, values, len(steps))
            first, *_ = axes.plot(steps, values.T, color=color, linewidth=0.9, alpha=0.8)
            first.set_label(label)
        axes.set(yscale="log", ylabel=f"{name} (log scale)")
        plain_ticks(axes.yaxis, *axes.get_ylim())
        steps_axis(axes)
        legend = axes.legend()
        for line in legend.get_lines():
            line.set(linewidth=2, alpha=1)


def offset_reconstructions(path, rows, offsets, title):
    """Draws the images that come out when every code is moved on its grid by an offset (Figures 3, 8 and 9).

    Args:
      path: the PNG file.
      rows: {label: uint8 [n_offsets, h, w, 3]}, of one image size.
      offsets: int [n_offsets], nodes along each axis; 0 is the plain reconstruction.
      title: what one sees.
    """
    refuse_empty("rows", rows)
    images = [checked_images(label, row, 1) for label, row in rows.items()]
    for label, row in zip(rows, images, strict=True):
        if row.shape != images[0].shape or len(row) != len(offsets):
            wanted = [len(offsets), *images[0].shape[1:]]
            raise InputError(f"{label}: want one image per offset, uint8 {wanted}, found {list(row.shape)}")
    numbers = np.arange(len(images) * len(offsets)).reshape(len(images), len(offsets))
    picture = mosaic(fitted(np.concatenate(images), max(96, min(256, 1500 // len(offsets)))), numbers, gap=4)
    height, width = (side / DPI for side in picture.shape[:2])
    names = [label.replace(", ", "\n") for label in rows]
    left, below = 0.25 + 0.06 * max(len(line) for name in names for line in name.splitlines()), 0.4
    with drawing(path, max(4.5, left + width + 0.13), below + height, title) as figure:
        axes = add_mosaic(figure, picture, left, below, numbers)
        axes.set_yticks(range(len(images)), names)
        axes.set_xticks(range(len(offsets)), [_signed(offset) for offset in offsets])
        axes.set_xlabel("places by which codes are moved along each axis, up to the border (0: as encoded)")


def _signed(offset):
    return f"{offset:+d}".replace("-", "\N{MINUS SIGN}") if offset else "0"


def neighborhoods(path, weights, title, winner=None):
    """Draws how strongly each node of the grid is pulled along with a winner, at several times (Figures 4 and 5).

    Args:
      path: the PNG file.
      weights: {label: float [rows, columns]} from 0 to 1; row 0 is at the top, as on the maps.
      title: what one sees.
      winner: (row, column); by default the middle of the largest weights, which is right away from the border.
    """
    refuse_empty("weights", weights)
    grids = {label: np.asarray(grid, np.float64) for label, grid in weights.items()}
    for label, grid in grids.items():
        if grid.ndim != 2 or not grid.size:
            raise InputError(f"{label}: want weights [rows, columns], found {list(grid.shape)}")
    rows, columns = np.max([grid.shape for grid in grids.values()], axis=0)
    width = 7.2 if len(grids) > 1 else 4.5
    across = min(3, len(grids))
    down = -(-len(grids) // across)
    cell = (width - 0.9) / across / columns
    with drawing(
        path, width, max(1.4, down * (cell * rows + 0.7)), title, "ringed: the winner; empty: below 0.005"
    ) as figure:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for axes, (label, grid) in zip(panels, grids.items(), strict=False):
            axes.set_title(label)
            mesh = _draw_weights(axes, grid, winner, writes=cell > 0.26)
            axes.set_xlabel("grid column")
        panels[0].set_ylabel("grid row")
        for axes in panels[len(grids) :]:
            axes.remove()
        bar = figure.colorbar(mesh, ax=panels.tolist(), label="update, relative to the winner's", shrink=0.85, pad=0.02)
        bar.outline.set_visible(False)


def _draw_weights(axes, grid, winner, writes):
    from matplotlib.patches import Circle

    line = 0.8 if writes else 0.3
    mesh = axes.pcolormesh(grid, vmin=0, vmax=1, cmap="Blues", edgecolors=FAINT, linewidth=line)
    row, column = np.argwhere(grid == grid.max()).mean(axis=0) if winner is None else winner
    axes.add_patch(Circle((column + 0.5, row + 0.5), 0.42, fill=False, color=PALETTE[1], linewidth=2 * line))
    for (y, x), weight in np.ndenumerate(grid):
        if writes and weight >= 0.005:
            color = "white" if weight > 0.55 else INK
            words = "1" if weight == 1 else f"{weight:.2f}"
            axes.text(x + 0.5, y + 0.5, words, ha="center", va="center", size=6.5, color=color)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for axis, count in ((axes.xaxis, grid.shape[1]), (axes.yaxis, grid.shape[0])):
        shown = range(0, count, -(-count // 6))
        axis.set_ticks([i + 0.5 for i in shown], [str(i) for i in shown])
    return mesh


def perplexity(path, values, codebook_size, title):
    """Draws how evenly the codebook is used as training goes on (Figure 6).

    Args:
      path: the PNG file.
      values: {label: (steps int [n], perplexity [n] or [seeds, n])}.
      codebook_size: the largest value possible.
      title: what one sees.
    """
    refuse_empty("values", values)
    note = "line: mean over seeds; band: one standard deviation"
    with drawing(path, 5.2, 3.1, title, note) as figure:
        axes = figure.subplots()
        for color, (label, (steps, measured)) in zip(itertools.cycle(PALETTE), values.items(), strict=False):
            mean_and_band(axes, steps, by_seed(label, measured, len(steps)), color, label)
        axes.axhline(codebook_size, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
        words = f"all {codebook_size} codes used equally"
        axes.annotate(words, (1, codebook_size), (0, 2), ("axes fraction", "data"), "offset points", ha="right")
        axes.set(ylim=(0, 1.1 * codebook_size), ylabel="perplexity (effective codes)")
        steps_axis(axes)
        figure.legend(loc="outside lower center", ncols=min(4, len(values)))


def frontier(path, points, title):
    """Draws loss against topographic error, and against PSNR under a moved code: what order costs, or brings.

    Args:
      path: the PNG file.
      points: settings, each a dict of `label`, `loss`, `topographic_error` (share of inputs from 0 to 1) and, if known,
        `psnr` (dB, of reconstructions whose codes were moved by one node), each a mean, with `<name>_std` over seeds if
        known. `paper`: True marks the setting of the paper.
      title: what one sees.
    """
    for point in points:
        if missing := {"label", "loss", "topographic_error"} - set(point):
            raise InputError(f"points: {point.get('label', 'a point')} lacks {', '.join(sorted(missing))}")
    refuse_empty("points", points)
    panels = ["topographic_error"] + ["psnr"] * any("psnr" in point for point in points)
    note = (
        "dots: means over seeds; bars: one standard deviation; orange: the paper's setting; tau: small is slow; "
        "shaded: the aim, at most one input in five whose second-nearest code is no neighbour of the nearest"
    )
    with drawing(path, 4.8 if len(panels) == 1 else 7.2, 3.1 + 0.17 * -(-len(points) // 3), title, note) as figure:
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, name in zip(grid, panels, strict=True):
            _draw_points(axes, points, name)
        grid[0].axvspan(0, 0.2, color=PALETTE[2], alpha=0.12, linewidth=0)
        grid[0].set(ylabel="validation reconstruction loss", xlabel="topographic error (share of inputs)")
        grid[0].set_xlim(0, max(0.25, grid[0].get_xlim()[1]))
        grid[0].set_title("Order on the map: best is lower left")
        if len(panels) > 1:
            grid[1].set(xlabel="PSNR with every code moved by one node (dB)", title="Robust codes: best is lower right")
        handles = grid[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3, handletextpad=0.3, columnspacing=1.2)


def _draw_points(axes, points, name):
    center = {"weight": "bold", "ha": "center", "va": "center_baseline"}
    for number, point in enumerate(points, 1):
        if name not in point:
            continue
        paper = point.get("paper", False)
        color = PALETTE[1] if paper else PALETTE[0]
        x, y = point[name], point["loss"]
        spread = {"xerr": point.get(f"{name}_std"), "yerr": point.get("loss_std")}
        axes.errorbar(x, y, **spread, color=color, linewidth=0.9, alpha=0.6)
        axes.plot(x, y, marker="o", markersize=9, color=color, markeredgecolor="white", linewidth=0)
        # The number alone, of the point's colour, is what the legend shows.
        axes.plot(
            [],
            [],
            marker=f"${number}$",
            markersize=6 if number < 10 else 9,
            color=color,
            linewidth=0,
            label=point["label"],
        )
        axes.text(x, y, str(number), color="white", size=6.5 if number < 10 else 5, **center)


def _of_seeds(what, values):
    """Says what bands or bars stand for, of arrays [seeds, ...] by label."""
    return f"{what}: one standard deviation over {max(map(len, values))} seeds."


def bit_errors(path, rates, lost, title):
    """Draws the PSNR that bit errors cost.

    Args:
      path: the PNG file.
      rates: bit error rates, float [n].
      lost: {label: dB below the PSNR without errors, [seeds, n]}.
      title: what one sees.
    """
    refuse_empty("lost", lost)
    note = (
        "A code is sent as its place on the grid, in Gray code, or as a number where there is no grid. Some bits are "
        f"flipped on the way. Lower is better. {_of_seeds('Bands', lost.values())}"
    )
    with drawing(path, 5.2, 3.1, title, note) as figure:
        axes = figure.subplots()
        labelled_curves(axes, rates, lost, marker="o", markersize=3.5)
        axes.set(xscale="log", xlabel="bits that are flipped", ylabel="PSNR lost (dB)")
        axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1], ["1 in 10,000", "1 in 1,000", "1 in 100", "1 in 10"])
        axes.legend()


def fewer_bits(path, bits, psnr, title):
    """Draws the PSNR of codebooks of which only some codes are kept.

    Args:
      path: the PNG file.
      bits: per code, float [n].
      psnr: {label: dB, [seeds, n]}.
      title: what one sees.
    """
    refuse_empty("psnr", psnr)
    bands = _of_seeds("Bands", psnr.values())
    note = f"Images are encoded with the codes that are kept, and decoded. Higher is better. {bands}"
    with drawing(path, 5.2, 3.1, title, note) as figure:
        axes = figure.subplots()
        labelled_curves(axes, bits, psnr, marker="o", markersize=3.5)
        axes.set(xlabel="codes that are kept", ylabel="PSNR (dB)")
        axes.set_xticks(bits, [f"{2**of_code:.0f}" for of_code in bits])
        axes.legend()


def compression(path, bits, title):
    """Draws what a code costs, in bits, in several ways of writing it.

    Args:
      path: the PNG file.
      bits: {label: {way: bits per code, [seeds]}}.
      title: what one sees.
    """
    refuse_empty("bits", bits)
    ways = list(dict.fromkeys(way for found in bits.values() for way in found))
    note = (
        "Bits that a coder spends if it knows how often codes are used, and the codes beside it in the image. Lower is "
        f"better. {_of_seeds('Bars', [own for found in bits.values() for own in found.values()])}"
    )
    with drawing(path, 5.6, 3.5, title, note) as figure:
        axes = figure.subplots()
        width = 0.8 / len(ways)
        for number, (color, way) in enumerate(zip(itertools.cycle(PALETTE), ways, strict=False)):
            places = [i for i, found in enumerate(bits.values()) if way in found]
            values = [found[way] for found in bits.values() if way in found]
            x = [place + (number - (len(ways) - 1) / 2) * width for place in places]
            spread = [np.std(own, ddof=1) if len(own) > 1 else 0 for own in values]
            bars = axes.bar(x, [np.mean(own) for own in values], 0.9 * width, yerr=spread, color=color, label=way)
            axes.bar_label(bars, fmt="%.1f", size=7)
        axes.set_xticks(range(len(bits)), list(bits))
        axes.set_ylabel("bits per code")
        figure.legend(ncols=2, loc="outside lower center")
