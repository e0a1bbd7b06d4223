"""Trains every setting of a table, with all seeds of a setting in one run, and prints the table.

    python launch/sweep.py --table=3 --dataset=photos
    python launch/sweep.py --table=3 --dataset=photos --smoke    # a trial: seconds per setting
    python launch/sweep.py --table=3 --dataset=cifar10 --print   # only print the commands, one per line
    python launch/sweep.py --table=quantizers --codes=4096 --dataset=photos

If the program is interrupted, run the same command again: it skips finished runs and resumes the interrupted one.
Settings that tables share are trained once. Other arguments, such as --config.steps=400, are passed to every run. To
print the table of existing runs, use `python -m kvae.report RUNS --table=3`.
"""

import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from kvae import main as training
from kvae.core import program
from kvae.core.errors import choose
from kvae.core.fields import Count
from kvae.core.files import user_path
from kvae.paper.settings import load_experiments
from kvae.paper.tables import markdown_tables
from kvae.training.workdir import journal


def training_arguments(
    experiments: Mapping[str, Any],
    table: str,
    dataset: str,
    seeds: int | None,
    runs: str,
    extra: list[str],
    smoke: bool = False,
) -> dict[str, list[str]]:
    """Returns, for each setting of a table, the arguments of `kvae.main` that train it.

    Args:
      experiments: The contents of `kvae.paper.experiments`, by name.
      table: A name in `TABLES`.
      dataset: A name in `CONFIGS`.
      seeds: Number of seeds; None for the number in `CONFIGS`. The seeds are numbered from the config's seed.
      runs: The folder of all runs; a setting's run is in RUNS/DATASET/SETTING.
      extra: Further arguments for every run.
      smoke: True trains the smoke form of the config, which takes seconds per setting.

    Raises:
      InputError: The table or the data set does not exist.
    """
    entry = choose("--dataset", dataset, experiments["CONFIGS"])
    arguments = {}
    for setting in choose("--table", table, experiments["TABLES"])["rows"]:
        fields = experiments["SETTINGS"][setting]
        arguments[setting] = [
            f"--config={entry['config']}{':smoke' if smoke else ''}",
            f"--workdir={pathlib.Path(runs) / dataset / setting}",
            f"--config.replicas={seeds or entry['seeds']}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
            *extra,
        ]
    return arguments


def is_trained(arguments: list[str]) -> bool:
    """Returns True if the run that `kvae.main` trains with these arguments is finished."""
    config, workdir = training.parse(arguments)
    return journal.is_finished(config, journal.read_metrics(workdir, config["replicas"]))


def train_setting(arguments: list[str]) -> bool:
    """Trains one setting in a separate process; returns True if the run finished.

    Raises:
      KeyboardInterrupt: This program was interrupted; the run was stopped and has saved a checkpoint.
    """
    process = subprocess.Popen([sys.executable, "-m", "kvae.main", *arguments])
    try:
        process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    return process.returncode == 0 and is_trained(arguments)


def main(argv: list[str]) -> int:
    """Runs the program with these arguments and returns its exit status."""
    parser = program.Parser("python launch/sweep.py", __doc__)
    parser.add_argument("--table", required=True, help="a table, such as 3 or schedules")
    parser.add_argument("--dataset", required=True, help="a data set: photos, folder, cifar10, imagenet or faces")
    parser.add_argument("--codes", type=program.number(Count), help="number of codes, for the table of quantizers")
    parser.add_argument("--seeds", type=program.number(Count), help="number of seeds (default: as in --experiments)")
    parser.add_argument("--runs", default="runs/paper", help="folder of all runs (default: %(default)s)")
    parser.add_argument(
        "--experiments", metavar="FILE", help="settings and tables (default: kvae/paper/experiments.py)"
    )
    parser.add_argument("--smoke", action="store_true", help="a trial: four steps per setting, in RUNS/smoke")
    parser.add_argument("--print", action="store_true", help="print the commands of unfinished runs; train nothing")
    options, extra = parser.parse_known_args(argv)
    runs = user_path("--runs", options.runs)
    experiments = load_experiments(options.experiments)
    folder = runs / "smoke" if options.smoke else runs
    table = options.table if options.codes in (None, 512) else f"{options.table}_{options.codes}"
    settings = training_arguments(experiments, table, options.dataset, options.seeds, str(folder), extra, options.smoke)
    settings = {setting: arguments for setting, arguments in settings.items() if not is_trained(arguments)}
    if options.print:
        for arguments in settings.values():
            print(shlex.join(["python", "-m", "kvae.main", *arguments]))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = []
    for number, (setting, arguments) in enumerate(settings.items(), 1):
        print(f"kvae: {setting}, {number} of {len(settings)}", file=sys.stderr, flush=True)
        try:
            if not train_setting(arguments):
                failed.append(setting)
        except KeyboardInterrupt:
            print("kvae: stopped; run the same command again to resume", file=sys.stderr)
            return program.INTERRUPTED
    if failed:
        print(f"kvae: not finished: {', '.join(failed)}; their errors are printed above", file=sys.stderr)
        return program.FAILED
    print(markdown_tables([str(folder / options.dataset)], experiments, table), end="")
    return 0
