"""Makes a table of the paper: trains what it compares, all seeds of a setting at once, then prints it.

    python launch/sweep.py --table=3 --dataset=photos
    python launch/sweep.py --table=3 --dataset=cifar10 --print   # the commands only, one a line, for a job array

Run the same command again and it goes on: what is finished is skipped, what was interrupted continues where it stopped.
Settings that tables share are trained once. Other arguments, such as --config.steps=400, go to every run. To print a
table again, or of runs that are elsewhere: `python -m kvae.report RUNS --table=3`.
"""

import argparse
import pathlib
import shlex
import signal
import subprocess
import sys

from kvae import main as program
from kvae.errors import InputError, choose
from kvae.paper.results import load_experiments
from kvae.report import report
from kvae.training import journal


def commands(experiments: dict, table: str, dataset: str, seeds: int | None, runs: str, extra: list[str]) -> dict:
    """For each setting of a table, the arguments of `kvae.main` that train it.

    Args:
      experiments: the names of configs/paper.py.
      table: a name in its TABLES.
      dataset: a name in its DATASETS.
      seeds: how many, 0, 1, 2 and so on; None for as many as the data set's entry says.
      runs: the folder of all runs: a setting's is RUNS/DATASET/SETTING.
      extra: further arguments.
    """
    source = choose("--dataset", dataset, experiments["DATASETS"])
    found = {}
    for setting in choose("--table", table, experiments["TABLES"])["rows"]:
        fields = dict(experiments["SETTINGS"][setting])
        variant = ":gradient" if fields.pop("model.quantizer", "kohonen") == "gradient" else ""
        found[setting] = [
            f"--config={source['config']}{variant}",
            f"--workdir={pathlib.Path(runs) / dataset / setting}",
            f"--config.replicas={seeds or source['seeds']}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
            *extra,
        ]
    return found


def is_finished(arguments: list[str]) -> bool:
    """Whether the run of these arguments has nothing left to do."""
    config, workdir, _ = program.parse(arguments)
    return journal.is_finished(config, journal.read_metrics(workdir))


def train(arguments: list[str]) -> bool:
    """Trains one setting in a process of its own; whether it was finished.

    Raises:
      KeyboardInterrupt: this program was asked to stop; the run has saved its state.
    """
    process = subprocess.Popen([sys.executable, "-m", "kvae.main", *arguments])
    try:
        process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    return process.returncode == 0 and is_finished(arguments)


def main(argv: list[str]) -> int:
    """Runs the program; returns its exit status: 0, 1 where a run failed, 2 for a mistake, 130 when it was stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="which, such as 3 or schedules")
    parser.add_argument("--dataset", required=True, help="on what: photos, cifar10, imagenet or faces")
    parser.add_argument("--seeds", type=int, help="how many; by default what the experiments file says")
    parser.add_argument("--runs", default="runs/paper", help="the folder of all runs (%(default)s)")
    parser.add_argument("--experiments", default="configs/paper.py", help="what is compared (%(default)s)")
    parser.add_argument("--print", action="store_true", help="print the commands of what is not finished")
    chosen, extra = parser.parse_known_args(argv)
    try:
        experiments = load_experiments(chosen.experiments)
        todo = commands(experiments, chosen.table, chosen.dataset, chosen.seeds, chosen.runs, extra)
        todo = {setting: arguments for setting, arguments in todo.items() if not is_finished(arguments)}
    except InputError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    if chosen.print:
        for arguments in todo.values():
            print(shlex.join(["python", "-m", "kvae.main", *arguments]))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = []
    for number, (setting, arguments) in enumerate(todo.items(), 1):
        print(f"sweep: {setting}, {number} of {len(todo)}", file=sys.stderr, flush=True)
        try:
            if not train(arguments):
                failed.append(setting)
        except KeyboardInterrupt:
            print("sweep: stopped; run the same command again to go on", file=sys.stderr)
            return 130
    if failed:
        print(f"sweep: not finished: {', '.join(failed)}; what they said stands above", file=sys.stderr)
        return 1
    print(report([str(pathlib.Path(chosen.runs) / chosen.dataset)], experiments, chosen.table), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
