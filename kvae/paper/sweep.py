"""Trains every setting of a table, with all seeds of a setting in one run, and prints the table.

    python launch/sweep.py --table=3 --dataset=photos
    python launch/sweep.py --table=3 --dataset=photos --smoke    # a trial: seconds per setting
    python launch/sweep.py --table=3 --dataset=cifar10 --print   # only print the commands, one per line
    python launch/sweep.py --table=quantizers --codes=4096 --dataset=photos
    python launch/sweep.py --table=priors --dataset=photos       # tokenisers, then priors over their codes

If the program is interrupted, run the same command again: it skips finished runs and resumes the interrupted one.
Settings that tables share are trained once. Other arguments, such as --config.steps=400, are passed to every run except
the priors. To print the table of existing runs, use `python -m kvae.report RUNS --table=3`; the table of priors is
printed by its own command.
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
from kvae.data.token_manifest import MANIFEST, find_manifest
from kvae.paper import prior_arms
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


def is_done(command: list[str]) -> bool:
    """Returns True if the run that a command trains is finished, or the tokens that it writes are complete.

    Args:
      command: "kvae.main" or "kvae.tokenize", then the arguments.
    """
    module, *arguments = command
    if module == "kvae.tokenize":
        out = next(argument.removeprefix("--out=") for argument in arguments if argument.startswith("--out="))
        return find_manifest(pathlib.Path(out), MANIFEST) is not None
    config, workdir = training.parse(arguments)
    return journal.is_finished(config, journal.read_metrics(workdir, config["replicas"]))


def run_command(command: list[str]) -> bool:
    """Runs one command in a separate process; returns True if it finished its work.

    Raises:
      KeyboardInterrupt: This program was interrupted; the run was stopped and has saved a checkpoint.
    """
    process = subprocess.Popen([sys.executable, "-m", *command])
    try:
        process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    return process.returncode == 0 and is_done(command)


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
    commands = {setting: ["kvae.main", *arguments] for setting, arguments in settings.items()}
    if options.table == "priors":
        seeds = options.seeds or experiments["CONFIGS"][options.dataset]["seeds"]
        commands |= dict(prior_arms.commands(folder, options.dataset, seeds, options.smoke))
    commands = {name: command for name, command in commands.items() if not is_done(command)}
    if options.print:
        for command in commands.values():
            print(shlex.join(["python", "-m", *command]))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = []
    for number, (name, command) in enumerate(commands.items(), 1):
        print(f"kvae: {name}, {number} of {len(commands)}", file=sys.stderr, flush=True)
        try:
            if not run_command(command):
                failed.append(name)
        except KeyboardInterrupt:
            print("kvae: stopped; run the same command again to resume", file=sys.stderr)
            return program.INTERRUPTED
    if failed:
        print(f"kvae: not finished: {', '.join(failed)}; their errors are printed above", file=sys.stderr)
        return program.FAILED
    if options.table == "priors":
        print(prior_arms.markdown(folder, options.dataset), end="")
    else:
        print(markdown_tables([str(folder / options.dataset)], experiments, table), end="")
    return 0
