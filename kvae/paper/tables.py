"""The paper's tables from finished runs: `python -m kvae.report RUNS… [--table=3] [--out=FILE]`, in Markdown.

RUNS are run folders, or folders with runs somewhere below them. What is missing, unfinished or made by another config
than the rest of its table is named under the table, and never averaged in.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence

from kvae.errors import InputError, choose
from kvae.paper.results import Table, collect, load_experiments, measures_of, read_seeds, setting_of, spread
from kvae.training.journal import write_atomically

COLUMNS = (
    ("loss", "loss ({unit})", 1),
    ("steps_10", "steps to +10%", 0),
    ("steps_20", "steps to +20%", 0),
    ("perplexity", "perplexity", 0),
    ("codes_used", "codes used", 0),
    ("topographic_error_8", "topographic error", 2),
    ("perturbation_psnr_1", "PSNR, codes moved by 1 (dB)", 1),
)
"""Measure, heading, and decimals."""

LEGEND = """\
Mean ± standard deviation over seeds. Loss: the lowest validation reconstruction loss of a run, on the normalised scale;
in brackets, how far its mean is above the lowest of the table. Steps to +10% (+20%): the first evaluation, of one every
{evaluate_every_steps:,} steps, whose loss is at most 1.1 (1.2) times that run's lowest. The rest is measured over the
validation set after the last step, {steps:,}: perplexity and codes used over the whole set; topographic error with 8
neighbours, the share of vectors whose two nearest codewords are no neighbours on the grid; PSNR of 32 images when every
code is moved by one node along each axis or, without a map, to the next number. Two values: top / bottom level."""


def cell(values: list[float], decimals: int, scale: float = 1.0) -> str:
    """Mean ± sample standard deviation, as in "52.1 ± 0.2"; the mean alone where there is one value."""
    mean, std = spread(values)
    words = f"{mean * scale:,.{decimals}f}"
    return words if std is None else f"{words} ± {std * scale:,.{decimals}f}"


def markdown(table: Table, experiments: Mapping) -> str:
    """A table, its legend, and what was left out."""
    entry = experiments["TABLES"][table.name]
    unit = experiments["DATASETS"].get(table.dataset, {}).get("loss_unit", "1e-3")
    paper = experiments["PAPER"].get(table.name, {}).get(table.dataset, {})
    known = max(map(len, paper.values()), default=0)  # how many of the first columns the paper has too
    measured = {setting: [measures_of(seed) for seed in own] for setting, own in table.seeds.items()}
    losses = {setting: spread([m["loss"] for m in own])[0] for setting, own in measured.items() if own}
    headings = ["setting", "seeds"]
    for i, (_, heading, _) in enumerate(COLUMNS):
        headings += [heading.format(unit=unit)] + ["paper"] * (i < known)
    lines = [f"### Table {table.name}, {table.dataset}: {entry['title']}", ""]
    lines += [_line(headings), _line(["---"] * len(headings))]
    for setting, label in entry["rows"].items():
        cells = [label, str(len(measured[setting]))]
        for i, (name, _, decimals) in enumerate(COLUMNS):
            cells.append(_measured(measured[setting], name, decimals, 1 / float(unit) if name == "loss" else 1))
            if name == "loss" and setting in losses:
                cells[-1] += f" (+{losses[setting] / min(losses.values()) - 1:.1%})"
            if i < known:
                cells.append(_published(paper.get(setting, ()), i, decimals))
        lines.append(_line(cells))
    config = next((own[0].config for own in table.seeds.values() if own), None)
    lines += ["", LEGEND.format(**config) if config else "There is no finished run."]
    if not paper:
        lines += ["", f"The paper has no such figures for {table.dataset}: none stands beside ours."]
    lines += ["", *(f"- {problem}" for problem in table.problems)] if table.problems else []
    return "\n".join(lines) + "\n"


def _line(cells):
    return f"| {' | '.join(cells)} |"


def _measured(measured, name, decimals, scale):
    """The cell of a measure; of both levels where there are two codebooks."""
    levels = [[m[key] for m in measured if m.get(key) is not None] for key in (name, f"{name}_top", f"{name}_bottom")]
    return " / ".join(cell(values, decimals, scale) for values in levels if values) or "—"


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


def main(argv: list[str]) -> int:
    """Runs the program; returns its exit status: 0, or 2 after an error that the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m kvae.report", description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders above them")
    parser.add_argument("--table", help="one table only, such as 3 or schedules")
    parser.add_argument("--out", help="a file for the tables; by default they are printed")
    parser.add_argument("--experiments", default="configs/paper.py", help="what is compared (%(default)s)")
    chosen = parser.parse_args(argv)
    try:
        experiments = load_experiments(chosen.experiments)
        if chosen.table:
            choose("--table", chosen.table, experiments["TABLES"])
        text = report(chosen.runs, experiments, chosen.table)
        if chosen.out:
            write_atomically(pathlib.Path(chosen.out), text)
        else:
            print(text, end="")
    except (InputError, OSError) as error:
        print(f"kvae: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
