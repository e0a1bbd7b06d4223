"""Compares runs: one row per config, averaged over its seeds, and one column per field that differs."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from kvae.core.markdown import to_markdown
from kvae.models.model import Metric
from kvae.runs.seeds import INCIDENTAL_FIELDS, Seed, mean_and_std, series
from kvae.training.config.sections import build_model
from kvae.training.workdir.run_config import read_config_json

LEGEND = "Last value and, in brackets, the best value of the run; mean ± standard deviation over seeds."


MEASURED_FIELDS = ("dataset.mean", "dataset.std")
"""Fields that are measured over the training set if the user leaves them empty."""


class SeedGroup(NamedTuple):
    """The seeds of one config.

    Attributes:
      label: The folders of the seeds, separated by commas.
      fields: The fields of the config by dotted name.
      seeds: One or more.
    """

    label: str
    fields: dict[str, Any]
    seeds: list[Seed]

    @property
    def metrics(self) -> dict[str, Metric]:
        """Returns `Model.metrics` of the group's model."""
        return build_model(read_config_json(self.seeds[0].workdir)).metrics


def group_seeds(seeds: Iterable[Seed]) -> list[SeedGroup]:
    """Groups seeds whose configs differ only in fields that do not affect results."""
    ignored = {*INCIDENTAL_FIELDS, "evaluate_every_steps"}
    by_config: dict[str, tuple[dict[str, Any], list[Seed]]] = {}
    for seed in seeds:
        fields = {name: value for name, value in seed.config.items() if name not in ignored}
        by_config.setdefault(json.dumps(fields, sort_keys=True), (fields, []))[1].append(seed)
    return [
        SeedGroup(", ".join(dict.fromkeys(seed.workdir for seed in members)), fields, members)
        for fields, members in by_config.values()
    ]


def differing_fields(groups: list[SeedGroup]) -> list[str]:
    """Returns the names of the fields in which groups differ, in the order of the config.

    A field that a group lacks also counts as different, unless the group's section has another name: FSQ, for example,
    has no grid. Mean and std of the images are left out if other fields of the data set differ.
    """
    names = dict.fromkeys(name for group in groups for name in group.fields)
    differing = [name for name in names if _differs(name, groups)]
    has_other_data = any(name.startswith("dataset.") and name not in MEASURED_FIELDS for name in differing)
    return [name for name in differing if not (has_other_data and name in MEASURED_FIELDS)]


def _differs(name: str, groups: list[SeedGroup]) -> bool:
    section_name = f"{name.rpartition('.')[0]}.name"
    with_field = [group for group in groups if name in group.fields]
    kinds = [group.fields.get(section_name) for group in with_field]
    is_lacking = any(name not in group.fields and group.fields.get(section_name) in kinds for group in groups)
    return len({json.dumps(group.fields[name]) for group in with_field}) + is_lacking > 1


def comparison_table(seeds: Iterable[Seed], narrow: bool = False) -> str:
    """Returns a Markdown table of the last and best value of each metric, with a line per seed that has a problem.

    Args:
      seeds: From `kvae.runs.seeds.read_seeds`.
      narrow: True gives each config a column instead of a row if this makes the table narrower.

    Example:
      >>> print(comparison_table([]))
      | run | seeds | step |
      | --- | --- | --- |
      <BLANKLINE>
      Last value and, in brackets, the best value of the run; mean ± standard deviation over seeds.
      <BLANKLINE>
    """
    groups = group_seeds(seeds)
    fields = differing_fields(groups)
    metrics: dict[str, Metric] = {}
    for group in groups:
        metrics |= {name: metric for name, metric in group.metrics.items() if metric.column or name == "loss"}
    columns = [_heading(name, metric) for name, metric in metrics.items()]
    # Metrics that would have the same heading are shown by their names.
    columns = [column if columns.count(column) == 1 else name for column, name in zip(columns, metrics, strict=True)]
    headings = ["run", "seeds", "step", *(name.removeprefix("model.") for name in fields), *columns]
    rows = [headings]
    for group in groups:
        cells = [group.label, str(len(group.seeds)), _last_steps(group)]
        cells += [_format_field(group.fields.get(name)) for name in fields]
        cells += [_format_metric(group.seeds, name, metric) for name, metric in metrics.items()]
        rows.append(cells)
    if narrow and len(rows) < len(headings):
        rows = list(zip(*rows, strict=True))
    problems = [f"- {seed.name}: {seed.problem}" for group in groups for seed in group.seeds if seed.problem]
    return "\n".join([to_markdown(rows), "", LEGEND, *problems]) + "\n"


def _heading(name: str, metric: Metric) -> str:
    return f"{metric.column or name}{f', {metric.label}' if metric.label else ''}"


def _last_steps(group: SeedGroup) -> str:
    steps = sorted({seed.rows[-1]["step"] if seed.rows else 0 for seed in group.seeds})
    return " to ".join(f"{step:,}" for step in steps[:: max(1, len(steps) - 1)])


def _format_field(value: Any) -> str:
    return "—" if value is None else str(tuple(value) if isinstance(value, list) else value)


def _format_metric(seeds: list[Seed], name: str, metric: Metric) -> str:
    """Formats the mean last value and, if `metric.better` is set, the mean of the seeds' best values in brackets.

    The best loss is the lowest finite one, as in `kvae.training.best`; other metrics may be best at other steps. A
    count is followed by N, the number of vectors counted.
    """
    histories = _histories(seeds, name)
    if not histories:
        return "—"
    cell = _format_mean([history[-1] for history in histories], metric)
    if metric.better is not None:
        cell += f" ({_format_mean([metric.better(history) for history in histories], metric)})"
    return cell + _format_total(seeds, metric)


def _format_total(seeds: list[Seed], metric: Metric) -> str:
    """Returns N, the number of vectors counted, in brackets; empty for metrics that are not counts."""
    totals = {history[-1] for history in _histories(seeds, metric.total)} if metric.total else set()
    if not totals:
        return ""
    return f" (N = {' to '.join(f'{total:,}' for total in sorted({min(totals), max(totals)}))})"


def _histories(seeds: list[Seed], name: str) -> list[list[Any]]:
    """Returns the values of a validation metric for each seed that logged it."""
    name = f"valid/{name}"
    histories = [[row[name] for row in seed.rows if row.get(name) is not None] for seed in seeds]
    return [history for history in histories if history]


def _format_mean(values: list[float], metric: Metric) -> str:
    mean, std = mean_and_std(values)
    decimals = metric.decimals if metric.column else 4
    return f"{mean:,.{decimals}f}" + ("" if std is None else f" ± {std:,.{decimals}f}")


def comparison_curves(seeds: Iterable[Seed]) -> dict[tuple[str, str], dict[str, tuple[list[int], np.ndarray]]]:
    """Returns the curves of validation metrics that `kvae.plots.curves.draw_comparison` draws.

    Args:
      seeds: From `kvae.runs.seeds.read_seeds`.

    Returns:
      {(title, unit): {label: (steps, values float64 [seeds, steps])}}: one entry per panel, with one curve per config.
    """
    groups = group_seeds(seeds)
    all_seeds = [seed for group in groups for seed in group.seeds]
    panels: dict[tuple[str, str], dict[str, tuple[list[int], np.ndarray]]] = {}
    for label, group in zip(_short_labels(groups), groups, strict=True):
        for name, metric in group.metrics.items():
            steps, values = series(group.seeds, f"valid/{name}")
            if metric.panel is None or not steps:
                continue
            title, unit = metric.panel
            title = (f"{title}: {metric.label}" if metric.label else title) + _format_total(all_seeds, metric)
            panels.setdefault((title, unit), {})[label] = (steps, values)
    return panels


def _short_labels(groups: list[SeedGroup]) -> list[str]:
    """Returns one label per group: the fields that differ if they are few, otherwise the folders."""
    fields = differing_fields(groups)
    labels = [
        ", ".join(f"{_short_name(name, fields)} {_format_field(group.fields.get(name))}" for name in fields)
        for group in groups
    ]
    are_clear = len(fields) <= 3 and len(set(labels)) == len(groups) > 1
    return labels if are_clear else [group.label for group in groups]


def _short_name(name: str, fields: list[str]) -> str:
    """Returns the last part of a field's name, after its section if ambiguous; `optimizer` for `optimizer.name`."""
    section, _, last = name.rpartition(".")
    section = section.rpartition(".")[2]
    if last == "name" and section:
        return section
    are_equal = sum(field.rpartition(".")[2] == last for field in fields) > 1
    return f"{section}.{last}" if are_equal and section else last
