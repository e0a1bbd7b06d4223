"""Any runs side by side: one line for each config, in which seeds are joined, and the fields that differ as columns."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from kvae.models.model import Metric
from kvae.runs.seeds import INCIDENTAL_FIELDS, Seed, mean_and_std, series
from kvae.training.config.sections import build_model
from kvae.training.workdir.run_config import config_of_run


class Line(NamedTuple):
    """Seeds of one config.

    Attributes:
      label: their folders.
      fields: of their config, flat.
      seeds: one or more.
    """

    label: str
    fields: dict[str, Any]
    seeds: list[Seed]

    @property
    def metrics(self) -> dict[str, Metric]:
        """What their model says of its metrics."""
        return build_model(config_of_run(self.seeds[0].workdir)).metrics


def lines_of(seeds: Iterable[Seed]) -> list[Line]:
    """Seeds, joined where their configs differ in nothing that matters."""
    by_config = {}
    for seed in seeds:
        fields = {
            name: value
            for name, value in seed.config.items()
            if name not in INCIDENTAL_FIELDS and name != "evaluate_every_steps"  # the last value is shown
        }
        by_config.setdefault(json.dumps(fields, sort_keys=True), (fields, []))[1].append(seed)
    return [
        Line(", ".join(dict.fromkeys(seed.workdir for seed in own)), fields, own) for fields, own in by_config.values()
    ]


def differing(lines: list[Line]) -> list[str]:
    """The fields in which lines differ, in the order of the config.

    A line that lacks a field differs too, unless the name of its section explains that, as an FSQ has no grid.
    """
    return [name for name in dict.fromkeys(name for line in lines for name in line.fields) if _differs(name, lines)]


def _differs(name, lines):
    chosen_by = f"{name.rpartition('.')[0]}.name"
    having = [line for line in lines if name in line.fields]
    kinds = [line.fields.get(chosen_by) for line in having]
    lacking = any(name not in line.fields and line.fields.get(chosen_by) in kinds for line in lines)
    return len({json.dumps(line.fields[name]) for line in having}) + lacking > 1


def comparison(seeds: Iterable[Seed]) -> str:
    """A table in Markdown: of each metric the last value and, in brackets, the best, mean ± standard deviation."""
    lines = lines_of(seeds)
    fields, metrics = differing(lines), {}
    for line in lines:
        metrics |= {name: metric for name, metric in line.metrics.items() if metric.column or name == "loss"}
    headings = ["run", "seeds", "step", *(name.removeprefix("model.") for name in fields)]
    said = [_heading(name, metric) for name, metric in metrics.items()]
    headings += [heading if said.count(heading) == 1 else name for heading, name in zip(said, metrics, strict=True)]
    rows = [headings, ["---"] * len(headings)]
    for line in lines:
        cells = [line.label, str(len(line.seeds)), _reached(line)]
        cells += [_value(line.fields.get(name)) for name in fields]
        cells += [_cell(line.seeds, f"valid/{name}", metric) for name, metric in metrics.items()]
        rows.append(cells)
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    problems = [f"- {seed.name}: {seed.problem}" for line in lines for seed in line.seeds if seed.problem]
    legend = "Last value, and in brackets the best one of the run; mean ± standard deviation over seeds."
    return "\n".join([text, "", legend, *problems]) + "\n"


def _heading(name, metric):
    level = f", {metric.label}" if metric.label else ""
    return f"{metric.column or name}{level}"


def _reached(line):
    steps = sorted({seed.rows[-1]["step"] if seed.rows else 0 for seed in line.seeds})
    return " to ".join(f"{step:,}" for step in steps[:: max(1, len(steps) - 1)])


def _value(value):
    return "—" if value is None else str(tuple(value) if isinstance(value, list) else value)


def _cell(seeds, name, metric):
    """The last values and, where a metric has a better end, each seed's best of that metric alone.

    For the loss this is the rule of `kvae.training.best`; other metrics may be best at other steps.
    """
    values = [[row[name] for row in seed.rows if row.get(name) is not None] for seed in seeds]
    values = [of_seed for of_seed in values if of_seed]
    if not values:
        return "—"
    words = _mean_and_deviation([of_seed[-1] for of_seed in values], metric)
    if metric.better is not None:
        words += f" ({_mean_and_deviation([metric.better(of_seed) for of_seed in values], metric)})"
    return words


def _mean_and_deviation(values, metric):
    mean, std = mean_and_std(values)
    decimals = metric.decimals if metric.column else 4
    return f"{mean:,.{decimals}f}" + ("" if std is None else f" ± {std:,.{decimals}f}")


def curves(seeds: Iterable[Seed]) -> dict[tuple[str, str], dict[str, tuple[list[int], np.ndarray]]]:
    """What `figures.run.comparison` draws: by title and unit of a panel, the curve of each line.

    Returns:
      {(title, unit): {label: (steps, values [seeds, steps])}}, of validation metrics.
    """
    lines, found = lines_of(seeds), {}
    for label, line in zip(_short_labels(lines), lines, strict=True):
        for name, metric in line.metrics.items():
            steps, values = series(line.seeds, f"valid/{name}")
            if metric.panel is None or not steps:
                continue
            title, unit = metric.panel
            title = f"{title}: {metric.label}" if metric.label else title
            found.setdefault((title, unit), {})[label] = (steps, values)
    return found


def _short_labels(lines: list[Line]) -> list[str]:
    """What tells the lines apart: the fields that differ where they are few, else the folders."""
    fields = differing(lines)
    labels = [
        ", ".join(f"{name.rpartition('.')[2]} {_value(line.fields.get(name))}" for name in fields) for line in lines
    ]
    return labels if len(fields) <= 3 and len(set(labels)) == len(lines) > 1 else [line.label for line in lines]
