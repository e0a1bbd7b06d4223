"""PNG figures of curves of one or more runs, and the axes, means and bands that other figures share."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from kvae.core.errors import InputError
from kvae.plots.canvas import PALETTE, QUIET, png_figure, require_series
from kvae.plots.tiles import hex_to_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MEAN_AND_BAND = "Line: mean over seeds. Band: one standard deviation."


def plot_mean_and_band(axes: "Axes", x: ArrayLike, values: ArrayLike, color: str, label: str, **line) -> None:
    """Plots the mean over seeds and, for two seeds or more, a band of one sample standard deviation around it.

    Args:
      axes: where to plot.
      x: [n].
      values: [n] or [seeds, n]; None and NaN leave a gap.
      color: colour of line and band.
      label: label in the legend.
      **line: options of `Axes.plot`.
    """
    values = np.atleast_2d(np.asarray(values, np.float64))
    mean = values.mean(axis=0)
    if len(values) > 1:
        std = values.std(axis=0, ddof=1)
        axes.fill_between(x, mean - std, mean + std, color=color, alpha=0.18, linewidth=0)
    axes.plot(x, mean, color=color, label=label, linewidth=1.6, **line)


def plot_labelled_curves(axes: "Axes", x: ArrayLike, values: Mapping[str, ArrayLike], **line) -> None:
    """Calls `plot_mean_and_band` for each item of {label: [n] or [seeds, n]}, in the colours of the palette."""
    for color, (label, series) in zip(itertools.cycle(PALETTE), values.items(), strict=False):
        plot_mean_and_band(axes, x, series, color, label, **line)


def format_steps_axis(axes: "Axes") -> None:
    """Formats the x axis for training steps: 500, 2k, 30k."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("training steps")


def format_log_axis(axis: "Axis", low: float, high: float) -> None:
    """Labels round numbers without exponents on an axis that is logarithmic from `low` to `high`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    # A range of less than a decade has too few powers of ten for a logarithmic locator.
    ratio = high / low
    axis.set_major_locator(MaxNLocator(5) if ratio < 8 else LogLocator(subs=(1,) if ratio > 1000 else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(NullLocator())


def _subplots(figure: "Figure", count: int) -> np.ndarray:
    """Returns `count` axes, in rows of two."""
    columns = min(2, count)
    panels = figure.subplots(-(-count // columns), columns, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.remove()
    return panels[:count]


def draw_training_curves(
    path: os.PathLike | str,
    rows: Sequence[Mapping],
    panels: Sequence[tuple[str, str, Sequence[tuple[str, str]]]],
    title: str,
) -> None:
    """Draws metrics of a run in training and in validation, in panels.

    Args:
      path: the PNG file.
      rows: rows of metrics.jsonl, with `step` and values by metric. None is a gap; a list has a value for each replica.
      panels: for each panel its title, its unit and its (label, metric) pairs. `train/<metric>` is drawn pale,
        `valid/<metric>` bold.
      title: title of the figure.

    Raises:
      InputError: no row has a metric of any panel, for example because the model's metrics have no `panel`.
    """
    logged = {name for row in rows for name in row}
    logged_panels = []
    for heading, unit, metrics in panels:
        series = [
            (split, label, f"{split}/{name}")
            for label, name in metrics
            for split in ("train", "valid")
            if f"{split}/{name}" in logged
        ]
        if series:
            logged_panels.append((heading, unit, series))
    if not logged_panels:
        raise InputError("rows have no metric of any panel; set `panel` for at least one metric of the model")
    replicated = [value for row in rows for value in row.values() if isinstance(value, list)]
    note = "Bold: validation. Pale: training."
    if replicated:
        note += " Thin: individual seeds."
    if any(None in values for values in replicated):
        note += " The mean has a gap where a seed has no value."
    reading = "Each panel shows one measure over the training steps."
    count = len(logged_panels)
    columns = min(2, count)
    with png_figure(path, max(4.5, 3.6 * columns + 0.2), 2.3 * -(-count // columns), title, note, reading) as figure:
        for axes, (heading, unit, series) in zip(_subplots(figure, count), logged_panels, strict=True):
            axes.set(title=heading, ylabel=unit)
            _plot_panel(axes, rows, series)


def _plot_panel(axes: "Axes", rows: Sequence[Mapping], panel: Sequence[tuple[str, str, str]]) -> None:
    """Plots (split, label, key) series: a metric in one colour, pale in training and bold in validation."""
    from matplotlib.ticker import MaxNLocator

    labels = list(dict.fromkeys(label for _, label, _ in panel))
    validated = {label for split, label, _ in panel if split == "valid"}
    last, lowest, are_counts = max(row["step"] for row in rows), np.inf, True
    for split, label, key in sorted(panel, key=lambda series: (labels.index(series[1]), series[0])):
        steps, values = _series(rows, key)
        bold = split == "valid"
        color = PALETTE[labels.index(label)]
        name = label or ("validation" if bold else "training")
        # Lines of the same colour share a legend entry; the note explains bold and pale.
        is_second = label and not bold and label in validated
        _plot_replicas(axes, steps, values, color if bold else _pale(color), bold, None if is_second else name)
        lowest = min(lowest, np.nanmin(values, initial=np.inf))
        are_counts &= bool(np.all(values[np.isfinite(values)] % 1 == 0))
    if are_counts:
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if "loss" in axes.get_title(loc="left").lower() and 0 < lowest < np.inf:
        axes.set_ylabel(f"{axes.get_ylabel()} (log scale)")
        axes.set_yscale("log")
        format_log_axis(axes.yaxis, *axes.get_ylim())
    axes.set_xlim(0, 1.03 * max(last, 1))
    format_steps_axis(axes)
    _add_legend_above(axes)


def _series(rows: Sequence[Mapping], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps at which a metric was logged, int [n], and its values, float [n, seeds]."""
    rows = [row for row in rows if key in row]
    seeds = max(np.size(row[key]) for row in rows)
    values = np.stack([np.broadcast_to(np.asarray(row[key], np.float64), seeds) for row in rows])
    return np.array([row["step"] for row in rows]), values


def _plot_replicas(axes: "Axes", steps, values, color: str, bold: bool, label: str | None) -> None:
    """Plots the mean of values [n, seeds], and a thin line for each of several seeds."""
    order = 3 if bold else 2
    if values.shape[1] > 1:
        axes.plot(steps, values, linewidth=0.5, alpha=0.5, color=color, zorder=order)
    mean = values.mean(axis=1)
    # A value between two gaps is not part of a line, so draw it as a dot.
    is_finite = np.concatenate([[False], np.isfinite(mean), [False]])
    alone = np.flatnonzero(is_finite[1:-1] & ~is_finite[:-2] & ~is_finite[2:])
    axes.plot(steps[alone], mean[alone], "o", markersize=3.5, color=color, zorder=order)
    axes.plot(steps, mean, label=label, linewidth=1.7 if bold else 1.3, color=color, zorder=order)


def _add_legend_above(axes: "Axes") -> None:
    """Adds a legend of one or two lines, and room for it above the curves."""
    scale = axes.yaxis.get_transform()
    bottom, top = axes.get_ylim()
    low, high = scale.transform((bottom, top))
    entries = len(axes.get_legend_handles_labels()[1])
    lines = min(2, entries)
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= top])
    axes.set_ylim(bottom, scale.inverted().transform(high + 0.2 * lines * (high - low)))
    axes.legend(handlelength=1.8, loc="upper right", ncols=-(-entries // lines))


def _pale(color: str) -> str:
    return "#" + "".join(f"{(value + 255) // 2:02X}" for value in hex_to_rgb(color))


def draw_comparison(
    path: os.PathLike | str,
    panels: Mapping[tuple[str, str], Mapping[str, tuple[Sequence[int], ArrayLike]]],
    title: str,
) -> None:
    """Draws metrics of several runs, one panel for each metric.

    Args:
      path: the PNG file.
      panels: {(title, unit): {label: (steps [n], values [n] or [seeds, n])}}.
      title: title of the figure.

    Raises:
      InputError: `panels` is empty.
    """
    require_series("panels", panels)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    colors = dict(zip(labels, itertools.cycle(PALETTE), strict=False))
    columns = min(2, len(panels))
    several = any(np.ndim(values) > 1 and len(values) > 1 for lines in panels.values() for _, values in lines.values())
    height = 2.2 * -(-len(panels) // columns) + 0.2 * len(labels)
    with png_figure(path, max(4.5, 3.6 * columns + 0.2), height, title, MEAN_AND_BAND if several else "") as figure:
        subplots = _subplots(figure, len(panels))
        for axes, ((heading, unit), lines) in zip(subplots, panels.items(), strict=True):
            axes.set(title=heading, ylabel=unit)
            for label, (steps, values) in lines.items():
                marker = {"marker": "o", "markersize": 3} if len(steps) == 1 else {}
                plot_mean_and_band(axes, steps, values, colors[label], label, **marker)
            format_steps_axis(axes)
        handles, names = subplots[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=1)


def draw_perturbation_curve(
    path: os.PathLike | str, offsets: Sequence[int], values: Mapping[str, ArrayLike], title: str
) -> None:
    """Draws the PSNR of images decoded after every code is moved on the grid.

    Args:
      path: the PNG file.
      offsets: int [n], in nodes along each axis of the grid.
      values: {label: PSNR in dB, [n] or [seeds, n]}. For several seeds, the mean and a band of one standard deviation
        are drawn.
      title: title of the figure.

    Raises:
      InputError: `values` is empty.
    """
    require_series("values", values)
    note = MEAN_AND_BAND if any(np.ndim(psnr) > 1 for psnr in values.values()) else ""
    with png_figure(path, 5.2, 3.1, title, note) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=QUIET, linewidth=0.6, linestyle=(0, (1, 2)))
        plot_labelled_curves(axes, offsets, values, marker="o", markersize=3.5)
        axes.set(xlabel="offset of every code along each axis of the grid (nodes)", ylabel="PSNR (dB)")
        axes.set_xticks(offsets)
        axes.legend()
