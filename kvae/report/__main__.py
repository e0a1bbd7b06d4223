"""Runs side by side, in Markdown: a line for each config, and the fields that differ as columns.

    python -m kvae.report runs/one runs/two [--out=FILE]
    python -m kvae.report runs/one runs/two --curves=curves.png
    python -m kvae.report runs/paper/photos --table=3
    python -m kvae.report runs/one runs/two --html [--out=FILE]
    python -m kvae.report --check runs/one

RUNS are run folders, on a disk or in a bucket (gs://bucket/run), or folders with runs somewhere below them. `--table`
prints a table of the paper, or `all`, from the runs that have its settings. `--html` makes a page of it, to be opened
in a browser, offline: the table, and the maps of the runs' codes side by side, to walk about in. `--check` reads all
that is kept of a run and says what is damaged, and then ends with status 1.
"""

import pathlib
import sys

from kvae.core import program
from kvae.core.buckets import as_path
from kvae.core.errors import InputError, choose, wrap_write_errors
from kvae.core.files import write_text
from kvae.paper import tables
from kvae.paper.settings import load_experiments
from kvae.plots import run as figures
from kvae.report.page import write_page
from kvae.runs.check import check
from kvae.runs.comparison import comparison, curves
from kvae.runs.opening import load
from kvae.runs.seeds import read_seeds, run_folders

PAGE = "report.html"


def main(argv: list[str]) -> int:
    """Runs the program; returns its exit status."""
    parser = program.Parser("python -m kvae.report", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders above them")
    parser.add_argument("--table", metavar="NAME", help="a table of the paper, such as 3 or schedules, or all")
    parser.add_argument("--html", action="store_true", help=f"a page for a browser, {PAGE} unless --out names a file")
    parser.add_argument("--out", metavar="FILE", help="a file for the tables; by default they are printed")
    parser.add_argument("--curves", metavar="PNG", help="a file for the curves of the runs")
    parser.add_argument("--experiments", metavar="FILE", help="what is compared, instead of kvae/paper/experiments.py")
    parser.add_argument("--check", action="store_true", help="whether checkpoints, config and journal are whole")
    chosen = parser.parse_args(argv)
    if chosen.check:
        return 0 if all([check(run) for run in run_folders(chosen.runs)]) else program.FAILED
    experiments = load_experiments(chosen.experiments)
    if chosen.table is None:
        text = comparison(read_seeds(chosen.runs))
    else:
        if chosen.table != "all":
            choose("--table", chosen.table, experiments["TABLES"])
        text = tables.report(chosen.runs, experiments, None if chosen.table == "all" else chosen.table)
    if chosen.curves:
        with wrap_write_errors(chosen.curves):
            figures.comparison(chosen.curves, curves(read_seeds(chosen.runs)), "Validation, run beside run")
    if chosen.html:
        print(_write_page(chosen.out or PAGE, chosen.runs, text))
    elif chosen.out:
        with wrap_write_errors(chosen.out):
            write_text(chosen.out, text)
    else:
        print(text, end="")
    return 0


def _write_page(path: str, folders: list[str], text: str) -> str:
    """Writes a page of all runs in, or below, the folders; what was done, in words.

    Raises:
      InputError: a run cannot be opened; one that was found below a folder is then left out, and named on the page.
    """
    runs, left_out = [], []
    for workdir in run_folders(folders):
        try:
            runs.append(load(workdir))
        except InputError as error:
            if workdir in map(str, map(as_path, folders)):
                raise
            left_out.append(f"- left out: {error}")
    write_page(path, runs, "\n".join([text, *left_out]), f"Codes of {', '.join(folders)}")
    size = f"{pathlib.Path(path).stat().st_size / 1e6:.1f} MB"
    return "\n".join([f"{path}: {size}, with the codes of {', '.join(run.workdir for run in runs)}", *left_out])


if __name__ == "__main__":
    sys.exit(program.run(main, sys.argv[1:]))
