"""A figure of paired differences: what each change gains or costs, on several sets of codes."""

import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from kvae.plots.canvas import PALETTE, QUIET, png_figure, require_series


def draw_differences(
    path: os.PathLike | str,
    panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    title: str,
    note: str,
    xlabel: str,
) -> None:
    """Draws one row for each arm, with a dot for each set of codes: the mean over seeds, and a line to each extreme.

    Args:
      path: the PNG file.
      panels: {title of the panel: {set of codes: {arm: differences, one for each seed}}}.
      title: title of the figure.
      note: sentences below the title.
      xlabel: name and unit of the difference.

    Raises:
      InputError: `panels` is empty.
    """
    require_series("panels", panels)
    sets = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    arms = list(dict.fromkeys(arm for panel in panels.values() for rows in panel.values() for arm in rows))
    shifts = np.linspace(-0.28, 0.28, len(sets)) if len(sets) > 1 else np.zeros(1)
    with png_figure(path, 7.2, 0.8 + 0.42 * len(arms), title, note) as figure:
        subplots = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (name, panel) in zip(subplots, panels.items(), strict=True):
            axes.axvline(0, color=QUIET, linewidth=0.9)
            for shift, codes, color, marker in zip(
                shifts, sets, itertools.cycle(PALETTE), itertools.cycle("osD^vP"), strict=False
            ):
                rows = {arm: values for arm, values in panel.get(codes, {}).items() if len(values)}
                places = [arms.index(arm) + shift for arm in rows]
                means = [np.mean(values) for values in rows.values()]
                ends = [[min(values) for values in rows.values()], [max(values) for values in rows.values()]]
                axes.hlines(places, *ends, color=color, linewidth=1.4, alpha=0.6)
                axes.plot(means, places, marker=marker, markersize=5, color=color, linewidth=0, label=codes)
            axes.set(title=name, xlabel=xlabel, yticks=range(len(arms)), yticklabels=arms)
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
            for border in range(1, len(arms)):
                axes.axhline(border - 0.5, color=QUIET, linewidth=0.3, alpha=0.5)
            axes.set_ylim(len(arms) - 0.5, -0.5)
        handles, labels = max((axes.get_legend_handles_labels() for axes in subplots), key=lambda pair: len(pair[1]))
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
