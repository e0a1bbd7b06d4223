"""PNG figures drawn like those of Irie et al. (2023), and the trade-off between fit and order."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from kvae.plots.canvas import FAINT, INK, PALETTE, QUIET, png_figure, require_series
from kvae.plots.curves import MEAN_AND_BAND, format_log_axis, format_steps_axis, plot_mean_and_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = Mapping[str, tuple[Sequence[int], ArrayLike]]
"""{label: (steps int [n], values [n] or [seeds, n])}."""


def draw_initialization(
    path: os.PathLike | str, losses: Series, title: str, name: str = "validation reconstruction loss"
) -> None:
    """Draws the loss of every seed for each initialisation of the counts (Figure 1).

    Args:
      path: the PNG file.
      losses: {label: (steps int [n], loss [n] or [seeds, n])}.
      title: title of the figure.
      name: name of the loss.

    Raises:
      InputError: `losses` is empty.
    """
    require_series("losses", losses)
    with png_figure(path, 5.6, 3.2, title, "One line per seed. The loss is measured on normalised images.") as figure:
        axes = figure.subplots()
        for color, (label, (steps, values)) in zip(itertools.cycle(PALETTE), losses.items(), strict=False):
            values = np.atleast_2d(np.asarray(values, np.float64))
            first, *_ = axes.plot(steps, values.T, color=color, linewidth=0.9, alpha=0.8)
            first.set_label(label)
        axes.set(yscale="log", ylabel=f"{name} (log scale)")
        format_log_axis(axes.yaxis, *axes.get_ylim())
        format_steps_axis(axes)
        legend = axes.legend()
        for line in legend.get_lines():
            line.set(linewidth=2, alpha=1)


def draw_neighborhoods(
    path: os.PathLike | str, weights: Mapping[str, ArrayLike], title: str, winner: tuple[int, int] | None = None
) -> None:
    """Draws the weights of a neighbourhood around a winner at several steps (Figures 4 and 5).

    Args:
      path: the PNG file.
      weights: {label: float [rows, columns]} from 0 to 1, with row 0 at the top, as on the maps.
      title: title of the figure.
      winner: (row, column). The default is the centre of the largest weights, which may be wrong near the border.
    """
    grids = {label: np.asarray(grid, np.float64) for label, grid in weights.items()}
    rows, columns = np.max([grid.shape for grid in grids.values()], axis=0)
    width = 7.2 if len(grids) > 1 else 4.5
    across = min(3, len(grids))
    down = -(-len(grids) // across)
    cell = (width - 0.9) / across / columns
    height = max(1.4, down * (cell * rows + 0.7))
    with png_figure(path, width, height, title, "Orange ring: the winner. Empty cells: below 0.005.") as figure:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for axes, (label, grid) in zip(panels, grids.items(), strict=False):
            axes.set_title(label)
            mesh = _plot_weights(axes, grid, winner, write=cell > 0.26)
            axes.set_xlabel("grid column")
        panels[0].set_ylabel("grid row")
        for axes in panels[len(grids) :]:
            axes.remove()
        bar = figure.colorbar(mesh, ax=panels.tolist(), label="weight", shrink=0.85, pad=0.02)
        bar.outline.set_visible(False)


def _plot_weights(axes: "Axes", grid: np.ndarray, winner: tuple[int, int] | None, write: bool):
    """Plots weights [rows, columns] as colours and, if `write`, as numbers. Returns the mesh."""
    from matplotlib.patches import Circle

    line = 0.8 if write else 0.3
    mesh = axes.pcolormesh(grid, vmin=0, vmax=1, cmap="Blues", edgecolors=FAINT, linewidth=line)
    row, column = np.argwhere(grid == grid.max()).mean(axis=0) if winner is None else winner
    axes.add_patch(Circle((column + 0.5, row + 0.5), 0.42, fill=False, color=PALETTE[1], linewidth=2 * line))
    for (y, x), weight in np.ndenumerate(grid):
        if write and weight >= 0.005:
            color = "white" if weight > 0.55 else INK
            text = "1" if weight == 1 else f"{weight:.2f}"
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", size=6.5, color=color)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for axis, count in ((axes.xaxis, grid.shape[1]), (axes.yaxis, grid.shape[0])):
        labelled = range(0, count, -(-count // 6))
        axis.set_ticks([i + 0.5 for i in labelled], [str(i) for i in labelled])
    return mesh


def draw_perplexity(path: os.PathLike | str, values: Series, codebook_size: int, title: str) -> None:
    """Draws the perplexity of the codebook during training (Figure 6).

    Args:
      path: the PNG file.
      values: {label: (steps int [n], perplexity [n] or [seeds, n])}.
      codebook_size: K, the largest possible perplexity.
      title: title of the figure.

    Raises:
      InputError: `values` is empty.
    """
    require_series("values", values)
    with png_figure(path, 5.2, 3.1, title, MEAN_AND_BAND) as figure:
        axes = figure.subplots()
        for color, (label, (steps, series)) in zip(itertools.cycle(PALETTE), values.items(), strict=False):
            plot_mean_and_band(axes, steps, series, color, label)
        axes.axhline(codebook_size, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
        text = f"all {codebook_size} codes used equally"
        axes.annotate(text, (1, codebook_size), (0, 2), ("axes fraction", "data"), "offset points", ha="right")
        axes.set(ylim=(0, 1.1 * codebook_size), ylabel="perplexity (effective codes)")
        format_steps_axis(axes)
        figure.legend(loc="outside lower center", ncols=min(4, len(values)))


def draw_pairs(path: os.PathLike | str, panels: Mapping[str, Series], title: str) -> None:
    """Draws curves of several measures by step, side by side. Labels come in pairs: EMA-VQ, then the map.

    Args:
      path: the PNG file.
      panels: {name of the measure: {label: (steps int [n], values [n] or [seeds, n])}}, the same labels for each.
      title: title of the figure.

    Raises:
      InputError: `panels` is empty.
    """
    require_series("panels", panels)
    note = f"{MEAN_AND_BAND} Dashed: EMA-VQ. Solid, in the same colour: the map with the same initialisation."
    with png_figure(path, 7.2, 4.2, title, note) as figure:
        for axes, (name, curves) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            for i, (label, (steps, values)) in enumerate(curves.items()):
                style = "-" if i % 2 else (0, (4, 1.5))
                plot_mean_and_band(axes, steps, values, PALETTE[i // 2], label, linestyle=style)
            axes.set(xscale="log", yscale="log", title=name)
            format_log_axis(axes.yaxis, *axes.get_ylim())
            format_log_axis(axes.xaxis, *axes.get_xlim())
            axes.set_xlabel("training steps")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def draw_frontier(path: os.PathLike | str, points: Sequence[Mapping], title: str) -> None:
    """Draws the trade-off between fit and order: loss against topographic error, and against PSNR with moved codes.

    Args:
      path: the PNG file.
      points: one mapping for each setting: `label`, `loss`, `topographic_error` (share of inputs from 0 to 1) and
        optionally `psnr` (dB, of reconstructions whose codes were moved by one node). Each is a mean over seeds;
        `<name>_std` is its standard deviation. `paper`: True marks the setting of the paper.
      title: title of the figure.

    Raises:
      InputError: `points` is empty.
    """
    require_series("points", points)
    panels = ["topographic_error"] + ["psnr"] * any("psnr" in point for point in points)
    note = (
        "Dots: means over seeds, with bars of one standard deviation. Orange: the paper's setting. With a smaller tau, "
        "the neighbourhood shrinks more slowly. Shaded: the goal, a topographic error of at most 20%. This error is "
        "the share of inputs whose two nearest codes are not neighbours."
    )
    width, height = 4.8 if len(panels) == 1 else 7.2, 3.1 + 0.17 * -(-len(points) // 3)
    with png_figure(path, width, height, title, note) as figure:
        subplots = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, name in zip(subplots, panels, strict=True):
            _plot_points(axes, points, name)
        order, *robustness = subplots
        order.axvspan(0, 0.2, color=PALETTE[2], alpha=0.12, linewidth=0)
        order.set(ylabel="validation reconstruction loss", xlabel="topographic error (share of inputs)")
        order.set_xlim(0, max(0.25, order.get_xlim()[1]))
        order.set_title("Order: lower left is best")
        for axes in robustness:
            axes.set(xlabel="PSNR with every code moved by one node (dB)", title="Robustness: lower right is best")
        handles = order.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3, handletextpad=0.3, columnspacing=1.2)


def _plot_points(axes: "Axes", points: Sequence[Mapping], name: str) -> None:
    """Plots the loss against another measure, one numbered dot for each setting."""
    center = {"weight": "bold", "ha": "center", "va": "center_baseline"}
    for number, point in enumerate(points, 1):
        if name not in point:
            continue
        color = PALETTE[1] if point.get("paper", False) else PALETTE[0]
        x, y = point[name], point["loss"]
        deviations = {"xerr": point.get(f"{name}_std"), "yerr": point.get("loss_std")}
        axes.errorbar(x, y, **deviations, color=color, linewidth=0.9, alpha=0.6)
        axes.plot(x, y, marker="o", markersize=9, color=color, markeredgecolor="white", linewidth=0)
        # An empty plot adds the number to the legend, in the colour of the dot.
        label = {"marker": f"${number}$", "markersize": 6 if number < 10 else 9, "label": point["label"]}
        axes.plot([], [], color=color, linewidth=0, **label)
        axes.text(x, y, str(number), color="white", size=6.5 if number < 10 else 5, **center)
