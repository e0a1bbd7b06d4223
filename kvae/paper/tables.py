"""The paper's tables from finished runs, in Markdown.

What is missing, unfinished or made by another config than the rest of its table is named under the table, and never
averaged in.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kvae.core.errors import InputError
from kvae.models.model import Metric
from kvae.paper.settings import Table, collect, measures_of, setting_of
from kvae.runs.seeds import Seed, mean_and_std, read_seeds
from kvae.training.config.sections import build_model
from kvae.training.workdir.run_config import config_of_run

LEGEND = """\
Mean ± standard deviation over seeds. Loss: the lowest validation reconstruction loss of a run, on the normalised scale;
in brackets, how far its mean is above the lowest of the table. Steps to +10% (+20%): the first evaluation, of one every
{evaluate_every_steps:,} steps, whose loss is at most 1.1 (1.2) times that run's lowest. The rest is measured over the
validation set after the last step, {steps:,}: perplexity and codes used over the whole set; topographic error, the
share of vectors whose two nearest codewords are no neighbours on the grid (8 on a plane, 26 in a cube); PSNR of 32
images when every code is moved by one node along each axis or, without a map, to the next number. Two values: top /
bottom level."""


def cell(values: list[float], decimals: int, scale: float = 1.0) -> str:
    """Mean ± sample standard deviation, as in "52.1 ± 0.2"; the mean alone where there is one value."""
    mean, std = mean_and_std(values)
    words = f"{mean * scale:,.{decimals}f}"
    return words if std is None else f"{words} ± {std * scale:,.{decimals}f}"


class Column(NamedTuple):
    """A column of a table: its heading, its decimals, and the measures of which a cell holds those that there are."""

    heading: str
    decimals: int
    measures: list[str]


def columns(metrics: Iterable[Mapping[str, Metric]], unit: str) -> list[Column]:
    """The loss, the steps to near it, and what the settings' models say of their metrics."""
    found = {
        f"loss ({unit})": Column(f"loss ({unit})", 1, ["loss"]),
        "steps to +10%": Column("steps to +10%", 0, ["steps_10"]),
        "steps to +20%": Column("steps to +20%", 0, ["steps_20"]),
    }
    for of_model in metrics:
        for name, metric in of_model.items():
            if metric.column is not None:
                column = found.setdefault(metric.column, Column(metric.column, metric.decimals, []))
                column.measures.extend({name} - {*column.measures})
    return list(found.values())


def _measures(seed: Seed, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """`measures_of`, less the metrics that its model no longer has: they may have meant something else."""
    known = {"loss", "steps_10", "steps_20", *metrics}
    return {name: value for name, value in measures_of(seed).items() if name in known}


def markdown(table: Table, experiments: Mapping) -> str:
    """A table, its legend, and what was left out."""
    entry = experiments["TABLES"][table.name]
    unit = experiments["DATASETS"].get(table.dataset, {}).get("loss_unit", "1e-3")
    paper = experiments["PAPER"].get(table.name, {}).get(table.dataset, {})
    known = max(map(len, paper.values()), default=0)  # how many of the first columns the paper has too
    metrics = {
        setting: build_model(config_of_run(own[0].workdir)).metrics for setting, own in table.seeds.items() if own
    }
    measured = {setting: [_measures(seed, metrics[setting]) for seed in own] for setting, own in table.seeds.items()}
    losses = {setting: mean_and_std([m["loss"] for m in own])[0] for setting, own in measured.items() if own}
    shown = columns(metrics.values(), unit)
    headings = ["setting", "seeds"]
    for i, column in enumerate(shown):
        headings += [column.heading] + ["paper"] * (i < known)
    lines = [f"### Table {table.name}, {table.dataset}: {entry['title']}", ""]
    lines += [_line(headings), _line(["---"] * len(headings))]
    for setting, label in entry["rows"].items():
        cells = [label, str(len(measured[setting]))]
        for i, column in enumerate(shown):
            cells.append(_measured(measured[setting], column, 1 / float(unit) if i == 0 else 1))
            if i == 0 and setting in losses:
                cells[-1] += f" (+{losses[setting] / min(losses.values()) - 1:.1%})"
            if i < known:
                cells.append(_published(paper.get(setting, ()), i, column.decimals))
        lines.append(_line(cells))
    config = next((own[0].config for own in table.seeds.values() if own), None)
    lines += ["", LEGEND.format(**config) if config else "There is no finished run."]
    if not paper:
        lines += ["", f"The paper has no such figures for {table.dataset}: none stands beside ours."]
    lines += ["", *(f"- {problem}" for problem in table.problems)] if table.problems else []
    return "\n".join(lines) + "\n"


def _line(cells):
    return f"| {' | '.join(cells)} |"


def _measured(measured, column, scale):
    """The cell of a column; one value for each codebook."""
    values = [[m[name] for m in measured if m.get(name) is not None] for name in column.measures]
    return " / ".join(cell(of_one, column.decimals, scale) for of_one in values if of_one) or "—"


def _published(figures, column, decimals):
    if column >= len(figures):
        return "—"
    mean, std = (figure * (1 if column == 0 else 1000) for figure in figures[column])
    return f"{mean:,.{decimals}f} ± {std:,.{decimals}f}"


def report(folders: Sequence[str], experiments: Mapping, table: str | None = None) -> str:
    """The tables of all runs, in Markdown: one for each data set, and of all tables if none is chosen.

    Raises:
      InputError: there are no runs, or none of the chosen table.
    """
    seeds, parts = read_seeds(folders), []
    found = dict.fromkeys((seed.config["dataset.name"], setting_of(seed.config, experiments)) for seed in seeds)
    for name in [table] if table else experiments["TABLES"]:
        rows = experiments["TABLES"][name]["rows"]
        for dataset in dict.fromkeys(dataset for dataset, setting in found if setting in rows):
            parts.append(markdown(collect(seeds, experiments, name, dataset), experiments))
    if not parts:
        raise InputError(f"{', '.join(folders)}: no run has a setting of {f'table {table}' if table else 'a table'}")
    others = dict.fromkeys(seed.workdir for seed in seeds if setting_of(seed.config, experiments) is None)
    parts += [f"- left out: {workdir}: it has no setting of {experiments['__file__']}\n" for workdir in others]
    return "\n".join(parts)
