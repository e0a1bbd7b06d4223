"""Compares runs: prints a Markdown table with one row per config and one column per field that differs.

    python -m kvae.report runs/one runs/two                       print the table
    python -m kvae.report runs/one runs/two --out=runs.md         write the table to a file
    python -m kvae.report runs/one runs/two --curves=curves.png   also draw the validation curves
    python -m kvae.report runs/one runs/two --html                write report.html, a page for a browser
    python -m kvae.report runs/paper/photos --table=3             print a table of the paper from these runs
    python -m kvae.report runs/paper/photos --table=3 --step=400  the same, from the runs' first 400 steps
    python -m kvae.report --check runs/one                        verify the files of a run

RUNS are run folders, local or in a bucket (gs://bucket/run), or folders that contain runs at any depth. The page of
--html works offline; it shows the table and the codebook maps of the runs. --check verifies every checkpoint,
config.json and metrics.jsonl, and the files of token folders. It exits with status 1 if a file is corrupted.
"""

import pathlib
import sys

from kvae.core import program
from kvae.core.errors import InputError, choose, wrap_write_errors
from kvae.core.fields import Count
from kvae.core.files import target_path, user_address, write_text

PAGE = "report.html"


def main(argv: list[str]) -> int:
    """Runs the program with these arguments and returns its exit status."""
    parser = program.Parser("python -m kvae.report", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders that contain them")
    parser.add_argument("--table", metavar="NAME", help="a table of the paper, such as 3 or schedules, or 'all'")
    parser.add_argument("--step", type=program.number(Count), help="last step of each run that --table uses")
    parser.add_argument("--html", action="store_true", help=f"write an HTML page to --out (default: {PAGE})")
    parser.add_argument("--out", metavar="FILE", help="write the table to a file instead of printing it")
    parser.add_argument("--curves", metavar="PNG", help="draw the validation curves of the runs to a file")
    parser.add_argument(
        "--experiments", metavar="FILE", help="settings and tables (default: kvae/paper/experiments.py)"
    )
    parser.add_argument("--check", action="store_true", help="verify the files of runs or token folders")
    options = parser.parse_args(argv)
    for option in ("out", "curves"):
        if getattr(options, option) is not None:
            setattr(options, option, str(target_path(f"--{option}", getattr(options, option))))
    # Heavy imports come after argument parsing so that a typo is reported immediately.
    from kvae.runs.check import check
    from kvae.runs.comparison import comparison_curves, comparison_table
    from kvae.runs.seeds import read_seeds

    if options.check:
        return 0 if check(options.runs) else program.FAILED
    if options.step and not options.table:
        raise InputError("--step needs --table, the table to print")
    if options.table is None:
        text = comparison_table(read_seeds(options.runs), narrow=options.html)
    else:
        text = _paper_tables(options.runs, options.table, options.experiments, options.step)
    if options.curves:
        from kvae.plots.curves import draw_comparison

        with wrap_write_errors(options.curves):
            draw_comparison(options.curves, comparison_curves(read_seeds(options.runs)), "Validation")
    if options.html:
        print(_write_page(options.out or PAGE, options.runs, text))
    elif options.out:
        with wrap_write_errors(options.out):
            write_text(options.out, text)
    else:
        print(text, end="")
    return 0


def _paper_tables(folders: list[str], name: str, file: str | None, step: int | None) -> str:
    """Returns one table of the paper, or all of them, in Markdown, from the rows of runs up to a step."""
    from kvae.paper import tables
    from kvae.paper.settings import load_experiments

    experiments = load_experiments(file)
    if name == "all":
        return tables.markdown_tables(folders, experiments, None, step)
    choose("--table", name, experiments["TABLES"])
    return tables.markdown_tables(folders, experiments, name, step)


def _write_page(path: str, folders: list[str], text: str) -> str:
    """Writes the page and returns a summary.

    Raises:
      InputError: A run named on the command line cannot be opened. A run found below a folder is left out instead,
        and the page gives the reason.
    """
    from kvae.report.page import write_page
    from kvae.runs.opening import load
    from kvae.runs.seeds import run_folders

    runs, left_out = [], []
    for workdir in run_folders(folders):
        try:
            runs.append(load(workdir))
        except InputError as error:
            if workdir in (user_address("the run", folder) for folder in folders):
                raise
            left_out.append(f"- left out: {error}")
    write_page(path, runs, "\n".join([text, *left_out]), f"Codebooks of {', '.join(folders)}")
    size = f"{pathlib.Path(path).stat().st_size / 1e6:.1f} MB"
    return "\n".join([f"{path}: {size}, with the codebooks of {', '.join(run.workdir for run in runs)}", *left_out])


if __name__ == "__main__":
    sys.exit(program.run(main, sys.argv[1:]))
