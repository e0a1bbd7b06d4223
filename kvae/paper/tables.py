"""Writes the paper's tables from finished runs, in Markdown.

Runs that are missing, unfinished, or made with a different config from the rest of the table are listed under the table
and never averaged.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kvae.core.errors import InputError
from kvae.core.markdown import to_markdown
from kvae.measures import attainable_codes
from kvae.models.model import Metric
from kvae.paper.settings import Table, collect, measures_of, setting_of
from kvae.runs.seeds import Seed, mean_and_std, read_seeds, until
from kvae.training.config.sections import build_model
from kvae.training.workdir.run_config import read_config_json

TABLE_LEGEND = """\
Mean ± sample standard deviation over seeds. Loss: the lowest validation reconstruction loss of a run, on normalised
images; in brackets, how far the mean is above the lowest mean of the table. Steps to +10% (+20%): the first step at
which the loss is at most 1.1 (1.2) times that run's lowest, with an evaluation every {evaluate_every_steps:,} steps.
All other columns are measured on the validation set after step {steps:,}; perplexity and codes used cover the whole
set{vectors}. Attainable: the codes that N vectors use if all K codes are equally likely, K (1 - e^(-N / K)).
Topographic error: the share of vectors whose two nearest codewords are not neighbours on the grid (a node has 8
neighbours on a plane, 26 in a cube). PSNR, codes moved by 1: PSNR of 32 images after every code is moved by one node
along each axis, or to the next code index if there is no map. PSNR, 1% bit errors: the same after one bit in a hundred
is flipped; on a map, the position along each axis is sent in Gray code. Several values: one for each codebook, such as
top / bottom level."""


def format_mean(values: list[float], decimals: int, scale: float = 1.0) -> str:
    """Formats mean ± sample standard deviation, as in "52.1 ± 0.2"; a single value without deviation.

    Example:
      >>> format_mean([0.0519, 0.0521, 0.0523], decimals=1, scale=1e3)
      '52.1 ± 0.2'

    Args:
      values: One value per seed.
      decimals: Digits after the decimal point.
      scale: Factor, such as 1e3 for a loss in units of 1e-3.
    """
    mean, std = mean_and_std(values)
    text = f"{mean * scale:,.{decimals}f}"
    return text if std is None else f"{text} ± {std * scale:,.{decimals}f}"


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      heading: The heading.
      decimals: Digits after the decimal point.
      measures: Names of the measures, such as one for each codebook; a cell shows those that its row has.
    """

    heading: str
    decimals: int
    measures: list[str]


def make_columns(metrics: Iterable[Mapping[str, Metric]], unit: str) -> list[Column]:
    """Returns the columns: the loss, the steps to reach it, and the models' metrics.

    Args:
      metrics: The metrics of each setting's model, by name.
      unit: Unit of the loss, such as "1e-3".
    """
    columns = {
        f"loss ({unit})": Column(f"loss ({unit})", 1, ["loss"]),
        "steps to +10%": Column("steps to +10%", 0, ["steps_10"]),
        "steps to +20%": Column("steps to +20%", 0, ["steps_20"]),
    }
    for model_metrics in metrics:
        for name, metric in model_metrics.items():
            if metric.column is not None:
                column = columns.setdefault(metric.column, Column(metric.column, metric.decimals, []))
                column.measures.extend({name} - {*column.measures})
            if metric.size is not None:
                heading = f"{metric.column} / {'attainable' if metric.total else 'K'} (%)"
                column = columns.setdefault(heading, Column(heading, 0, []))
                column.measures.extend({_share(name)} - {*column.measures})
    return list(columns.values())


def known_measures(seed: Seed, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Returns `measures_of` a seed, and each metric with a limit as a percentage of this limit.

    Metrics that the model no longer has are left out, because their meaning may have changed.
    """
    known = {"loss", "steps_10", "steps_20", *metrics}
    measures = {name: value for name, value in measures_of(seed).items() if name in known}
    for name, metric in metrics.items():
        total = metric.total or name
        if metric.size is not None and name in measures and total in measures:
            limit = attainable_codes(metric.size, measures[total]) if metric.total else metric.size
            measures[_share(name)] = 100 * measures[name] / limit
    return measures


def _share(metric: str) -> str:
    """Returns the name of a metric's share of its limit."""
    return f"{metric} / limit"


def markdown_table(table: Table, experiments: Mapping[str, Any], step: int | None = None) -> str:
    """Returns a table with its legend and the list of runs that are missing or left out.

    Args:
      table: The seeds.
      experiments: The contents of `kvae.paper.experiments`, by name.
      step: The step that the legend gives; None for the last of the run.
    """
    entry = experiments["TABLES"][table.name]
    unit = experiments["CONFIGS"].get(table.dataset, {}).get("loss_unit", "1e-3")
    published = experiments["PUBLISHED"].get(table.name, {}).get(table.dataset, {})
    published_columns = max(map(len, published.values()), default=0)
    metrics = {
        setting: build_model(read_config_json(seeds[0].workdir)).metrics
        for setting, seeds in table.seeds.items()
        if seeds
    }
    measures = {
        setting: [known_measures(seed, metrics[setting]) for seed in seeds] for setting, seeds in table.seeds.items()
    }
    losses = {setting: mean_and_std([m["loss"] for m in rows])[0] for setting, rows in measures.items() if rows}
    columns = make_columns(metrics.values(), unit)
    headings = ["setting", "seeds"]
    for i, column in enumerate(columns):
        headings += [column.heading] + ["paper"] * (i < published_columns)
    lines = [f"### Table {table.name}, {table.dataset}: {entry['title']}", ""]
    rows = [headings]
    for setting, label in entry["rows"].items():
        cells = [label, str(len(measures[setting]))]
        for i, column in enumerate(columns):
            cells.append(_cell(measures[setting], column, 1 / float(unit) if i == 0 else 1))
            if i == 0 and setting in losses:
                cells[-1] += f" (+{losses[setting] / min(losses.values()) - 1:.1%})"
            if i < published_columns:
                cells.append(_published_cell(published.get(setting, ()), i, column.decimals))
        rows.append(cells)
    lines.append(to_markdown(rows))
    config = next((seeds[0].config for seeds in table.seeds.values() if seeds), None)
    vectors = _vectors(measures, metrics)
    lines += [
        "",
        TABLE_LEGEND.format(vectors=vectors, **config | ({"steps": step} if step else {}))
        if config
        else "There is no finished run.",
    ]
    if not published:
        lines += ["", f"The paper has no results on {table.dataset} for this table."]
    notes = [f"- left out: {line}" for line in table.left_out] + [f"- missing: {line}" for line in table.missing]
    lines += ["", *notes] if notes else []
    return "\n".join(lines) + "\n"


def _vectors(measures: Mapping[str, Sequence[Mapping[str, float]]], metrics: Mapping[str, Mapping[str, Metric]]) -> str:
    """Returns the number of vectors N of each codebook, for the legend; empty if it was not logged."""
    names = dict.fromkeys(metric.total for of_model in metrics.values() for metric in of_model.values() if metric.total)
    last = {name: value for rows in measures.values() for row in rows for name, value in row.items()}
    totals = dict.fromkeys(f"{last[name]:,}" for name in names if name in last)
    return f", N = {' / '.join(totals)} vectors" if totals else ""


def _cell(measures: list[dict[str, float]], column: Column, scale: float) -> str:
    """Formats the mean over seeds of each measure of a column."""
    values = [[row[name] for row in measures if row.get(name) is not None] for name in column.measures]
    return " / ".join(format_mean(seeds, column.decimals, scale) for seeds in values if seeds) or "—"


def _published_cell(results: Sequence[tuple[float, float]], column: int, decimals: int) -> str:
    if column >= len(results):
        return "—"
    mean, std = (value * (1 if column == 0 else 1000) for value in results[column])
    return f"{mean:,.{decimals}f} ± {std:,.{decimals}f}"


def markdown_tables(
    folders: Sequence[str], experiments: Mapping[str, Any], table: str | None = None, step: int | None = None
) -> str:
    """Returns tables of runs in Markdown, one for each table and data set.

    Args:
      folders: Run folders, or folders that contain them.
      experiments: The contents of `kvae.paper.experiments`, by name.
      table: A name in `TABLES`; None for all tables that have runs.
      step: Last step of each run to use; None for its last. Runs that have reached it need not be finished.

    Raises:
      InputError: There are no runs, or no run belongs to the table.
    """
    seeds, parts = read_seeds(folders), []
    seeds = seeds if step is None else [until(seed, step) for seed in seeds]
    pairs = dict.fromkeys((seed.config["dataset.name"], setting_of(seed.config, experiments)) for seed in seeds)
    for name in [table] if table else experiments["TABLES"]:
        rows = experiments["TABLES"][name]["rows"]
        for dataset in dict.fromkeys(dataset for dataset, setting in pairs if setting in rows):
            parts.append(markdown_table(collect(seeds, experiments, name, dataset), experiments, step))
    if not parts:
        raise InputError(f"{', '.join(folders)}: no run has a setting of {f'table {table}' if table else 'a table'}")
    others = dict.fromkeys(seed.workdir for seed in seeds if setting_of(seed.config, experiments) is None)
    parts += [f"- left out: {workdir}: not a setting of {experiments['__file__']}\n" for workdir in others]
    return "\n".join(parts)
