"""PNG figures of URL-SOM."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from kvae.plots.canvas import INK, PALETTE, add_axes, png_figure, require_series
from kvae.plots.curves import MEAN_AND_BAND, plot_labelled_curves
from kvae.plots.tiles import label_cells, lay_out_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_winners(
    path: os.PathLike | str,
    winners: ArrayLike,
    labels: ArrayLike | None,
    label_names: Sequence[str] | None,
    grid_shape: tuple[int, ...],
    title: str,
) -> None:
    """Draws each sample near its winning neuron, in the colour of its label (Figures 4 and 6 of URL-SOM).

    Args:
      path: the PNG file.
      winners: index of each sample's winning neuron, row by row on the grid, int [n].
      labels: int [n], indices into `label_names`, or None.
      label_names: names of the labels. Each is written where its samples are densest.
      grid_shape: shape of the map.
      title: title of the figure.
    """
    size, winners = math.prod(grid_shape), np.asarray(winners)
    names = [""] if labels is None else list(label_names)
    kinds = np.zeros(len(winners), int) if labels is None else np.asarray(labels)
    layout = lay_out_grid(grid_shape)
    rows, columns = layout.codes.shape
    cells = np.empty(size, int)
    cells[layout.codes[layout.codes >= 0]] = np.flatnonzero(layout.codes >= 0)
    row, column = np.divmod(cells[winners], columns)
    cell = min(6.2 / columns, 6.2 / rows)
    legend = 0.15 if labels is None else 1.15
    used = np.unique(winners).size
    note = f"{len(winners):,} samples, each near its winning neuron. {used:,} of {size:,} neurons in use."
    reading = "On an ordered map each label fills one region, although training used no labels."
    width, height = max(4.5, 0.55 + cell * columns + legend), 0.45 + cell * rows
    with png_figure(path, width, height, title, note, reading) as figure:
        axes = add_axes(figure, 0.55, 0.45, cell * columns, cell * rows)
        _scatter(axes, row, column, kinds, names)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        label_cells(axes, layout)


def _scatter(axes: "Axes", row: np.ndarray, column: np.ndarray, kinds: np.ndarray, names: Sequence[str]) -> None:
    """Plots samples at random positions within their cells, in the colours of their labels."""
    import matplotlib
    from matplotlib.patheffects import withStroke

    colors = np.array([matplotlib.colors.to_rgb(color) for color in PALETTE])
    if len(names) > len(colors):
        colors = matplotlib.colormaps["turbo"](np.linspace(0, 1, len(names)))[:, :3]
    random = np.random.default_rng(0)
    # Draw in random order, so that no label covers the others.
    order = random.permutation(len(row))
    jitter = random.uniform(-0.4, 0.4, (2, len(row)))
    size = np.clip(130_000 / max(len(row), 1), 1, 8)
    axes.scatter((column + jitter[0])[order], (row + jitter[1])[order], s=size, c=colors[kinds[order]], linewidths=0)
    axes.grid(False)
    axes.spines[:].set_visible(True)
    for kind, name in enumerate(names if len(names) > 1 else ()):
        axes.scatter([], [], s=18, color=colors[kind], label=name, linewidths=0)
        if not np.any(kinds == kind):
            continue
        y, x = _densest_cell(row[kinds == kind], column[kinds == kind])
        text = axes.text(x, y, name, size=9.5, weight="bold", ha="center", va="center", color=INK)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    if len(names) > 1:
        axes.legend(title="label", loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2)


def _densest_cell(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Returns the occupied cell, int [2], with the most samples in it and the eight cells around it."""
    hits = np.zeros((row.max() + 3, column.max() + 3), int)
    np.add.at(hits, (row + 1, column + 1), 1)
    near = sum(np.roll(hits, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1))
    return np.subtract(np.unravel_index(np.argmax(near * (hits > 0)), hits.shape), 1)


def draw_collapse_surface(
    path: os.PathLike | str, x: ArrayLike, probability: ArrayLike, loss: ArrayLike, title: str
) -> None:
    """Draws the sum of the winner-take-all and collapse losses of two neurons (Figure 3 of URL-SOM).

    Args:
      path: the PNG file.
      x: float [n], input of the softmax, from 0 (undecided) upwards.
      probability: float [m], share of the samples that the first neuron wins.
      loss: float [n, m].
      title: title of the figure.
    """
    from matplotlib.ticker import MaxNLocator

    x, probability, loss = (np.asarray(array, np.float64) for array in (x, probability, loss))
    with png_figure(path, 5.0, 3.5, title, "Lines: equal loss. Dot: the lowest loss in the figure.") as figure:
        axes = figure.subplots()
        low, high = loss.min(), loss.max() + 1e-9
        filled = axes.contourf(x, probability, loss.T, np.linspace(low, high, 101), cmap="YlGnBu_r")
        # Close to the extremes, a contour would be only a speck.
        speck = 0.01 * (high - low)
        levels = [level for level in MaxNLocator(8).tick_values(low, high) if low + speck < level < high - speck]
        shades = ["white" if level < (low + high) / 2 else INK for level in levels]
        lines = axes.contour(x, probability, loss.T, levels, colors=shades, linewidths=0.6)
        axes.clabel(lines, fontsize=6.5, fmt="%.2f")
        i, j = np.unravel_index(np.argmin(loss), loss.shape)
        marker = {"color": PALETTE[1], "markeredgecolor": "white", "markersize": 8, "clip_on": False, "zorder": 5}
        axes.plot(x[i], probability[j], "o", **marker)
        axes.set(xlabel="softmax input (0: undecided; large: one winner)", ylabel="share won by the first neuron")
        axes.grid(False)
        bar = figure.colorbar(filled, label="winner-take-all + collapse loss", ticks=MaxNLocator(6))
        bar.outline.set_visible(False)


def draw_selectivity_by_sigma(
    path: os.PathLike | str, sigmas: Sequence[float], selectivity: Mapping[str, ArrayLike], title: str
) -> None:
    """Draws neural selectivity against the width of the fixed filter (the effect in Figure 7 of URL-SOM).

    Args:
      path: the PNG file.
      sigmas: float [n], standard deviations of the filter in neurons.
      selectivity: {label: neural selectivity from 0 to 1, [n] or [seeds, n]}.
      title: title of the figure.

    Raises:
      InputError: `selectivity` is empty.
    """
    require_series("selectivity", selectivity)
    percent = {label: 100 * np.asarray(values, np.float64) for label, values in selectivity.items()}
    with png_figure(path, 5.0, 3.0, title, MEAN_AND_BAND) as figure:
        axes = figure.subplots()
        plot_labelled_curves(axes, sigmas, percent, marker="o", markersize=4)
        axes.set(xlabel="width of the fixed filter, sigma (neurons)", ylabel="neural selectivity (%)", xticks=sigmas)
        axes.legend()
