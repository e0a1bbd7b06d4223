"""Figures of URL-SOM: arrays in, a PNG file out, drawn on `kvae.plots.canvas`."""

import itertools
import math

import numpy as np

from kvae.core.errors import InputError
from kvae.plots.canvas import INK, PALETTE, add_axes, by_seed, drawing, mean_and_band, name_ticks, refuse_empty, sheet


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
    size = math.prod(grid_shape)
    winners = _checked_numbers("winners", winners, size)
    names = [""] if labels is None else list(label_names)
    kinds = _checked_numbers("labels", np.zeros(len(winners), int) if labels is None else labels, len(names))
    if len(kinds) != len(winners):
        raise InputError(f"labels: want one for each of {len(winners)} winners, found {len(kinds)}")
    page = sheet(grid_shape)
    rows, columns = page.codes.shape
    spots = np.empty(size, int)
    spots[page.codes[page.codes >= 0]] = np.flatnonzero(page.codes >= 0)
    row, column = np.divmod(spots[winners], columns)
    cell = min(6.2 / columns, 6.2 / rows)
    beside = 0.15 if labels is None else 1.15
    active = np.unique(winners).size
    note = f"{len(winners):,} samples, each scattered about its winner; {active:,} of {size:,} neurons in use"
    reading = "A map in order has each label in one region, though no label was seen in training"
    with drawing(path, max(4.5, 0.55 + cell * columns + beside), 0.45 + cell * rows, title, note, reading) as figure:
        axes = add_axes(figure, 0.55, 0.45, cell * columns, cell * rows)
        _scatter(axes, row, column, kinds, names)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        name_ticks(axes, page)


def _checked_numbers(name, numbers, below):
    numbers = np.asarray(numbers)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise InputError(f"{name}: want int [n], found {numbers.dtype} {list(numbers.shape)}")
    if np.any((numbers < 0) | (numbers >= below)):
        raise InputError(f"{name}: want numbers from 0 to {below - 1}, found {numbers.min()} to {numbers.max()}")
    return numbers


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
        if not np.any(kinds == kind):
            continue
        y, x = _densest(row[kinds == kind], column[kinds == kind])
        text = axes.text(x, y, name, size=9.5, weight="bold", ha="center", va="center", color=INK)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    if len(names) > 1:
        axes.legend(title="label", loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2)


def _densest(row, column):
    """The occupied cell with the most samples in it and the eight about it."""
    hits = np.zeros((row.max() + 3, column.max() + 3), int)
    np.add.at(hits, (row + 1, column + 1), 1)
    near = sum(np.roll(hits, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1))
    return np.subtract(np.unravel_index(np.argmax(near * (hits > 0)), hits.shape), 1)


def collapse_surface(path, x, probability, loss, title):
    """Draws winner-take-all plus collapse loss of two neurons, by how decided and balanced they are (URL-SOM, Fig. 3).

    Args:
      path: the PNG file.
      x: float [n], input of the softmax, from undecided upwards.
      probability: float [m], with which the first neuron is the winner.
      loss: float [n, m].
      title: what one sees.
    """
    x, probability, loss = (np.asarray(array, np.float64) for array in (x, probability, loss))
    if loss.shape != (len(x), len(probability)) or min(loss.shape) < 2:
        raise InputError(f"loss: want [{len(x)}, {len(probability)}], at least 2 by 2, found {list(loss.shape)}")
    from matplotlib.ticker import MaxNLocator

    with drawing(path, 5.0, 3.5, title, "lines: equal loss; dot: the lowest loss shown") as figure:
        axes = figure.subplots()
        low, high = loss.min(), loss.max() + 1e-9
        filled = axes.contourf(x, probability, loss.T, np.linspace(low, high, 101), cmap="YlGnBu_r")
        # Next to the extremes a line would be but a speck.
        speck = 0.01 * (high - low)
        levels = [level for level in MaxNLocator(8).tick_values(low, high) if low + speck < level < high - speck]
        shades = ["white" if level < (low + high) / 2 else INK for level in levels]
        lines = axes.contour(x, probability, loss.T, levels, colors=shades, linewidths=0.6)
        axes.clabel(lines, fontsize=6.5, fmt="%.2f")
        i, j = np.unravel_index(np.argmin(loss), loss.shape)
        axes.plot(
            x[i], probability[j], "o", color=PALETTE[1], markeredgecolor="white", markersize=8, clip_on=False, zorder=5
        )
        axes.set(
            xlabel="input of the softmax (0: undecided; large: one winner)", ylabel="share won by the first neuron"
        )
        axes.grid(False)
        bar = figure.colorbar(filled, label="winner-take-all + collapse loss", ticks=MaxNLocator(6))
        bar.outline.set_visible(False)


def neural_selectivity_by_sigma(path, sigmas, selectivity, title):
    """Draws how well neurons keep classes apart, by the width of the fixed filter (the effect of URL-SOM's Fig. 7).

    Args:
      path: the PNG file.
      sigmas: float [n], standard deviation of the filter in neurons.
      selectivity: {label: neural selectivity from 0 to 1, [n] or [seeds, n]}.
      title: what one sees.
    """
    refuse_empty("selectivity", selectivity)
    with drawing(path, 5.0, 3.0, title, "line: mean over seeds; band: one standard deviation") as figure:
        axes = figure.subplots()
        for color, (label, values) in zip(itertools.cycle(PALETTE), selectivity.items(), strict=False):
            values = 100 * by_seed(label, values, len(sigmas))
            mean_and_band(axes, sigmas, values, color, label, marker="o", markersize=4)
        axes.set(xlabel="width of the fixed filter, sigma (neurons)", ylabel="neural selectivity (%)", xticks=sigmas)
        axes.legend()
