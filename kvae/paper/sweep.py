"""Makes a table of the paper: trains what it compares, all seeds of a setting at once, then prints it.

    python launch/sweep.py --table=3 --dataset=photos
    python launch/sweep.py --table=3 --dataset=photos --smoke    # a try of some seconds a setting
    python launch/sweep.py --table=3 --dataset=cifar10 --print   # the commands only, one a line, for a job array

Run the same command again and it goes on: what is finished is skipped, what was interrupted continues where it stopped.
Settings that tables share are trained once. Other arguments, such as --config.steps=400, go to every run. To print a
table again, or of runs that are elsewhere: `python -m kvae.report RUNS --table=3`.
"""

import pathlib
import shlex
import signal
import subprocess
import sys

from kvae import main as training
from kvae.core import program
from kvae.core.errors import check_local, choose
from kvae.core.fields import Count
from kvae.paper.settings import load_experiments
from kvae.paper.tables import report
from kvae.training.workdir import journal


def commands(
    experiments: dict, table: str, dataset: str, seeds: int | None, runs: str, extra: list[str], smoke: bool = False
) -> dict:
    """For each setting of a table, the arguments of `kvae.main` that train it.

    Args:
      experiments: the names of `kvae.paper.experiments`.
      table: a name in its TABLES.
      dataset: a name in its DATASETS.
      seeds: how many, 0, 1, 2 and so on; None for as many as the data set's entry says.
      runs: the folder of all runs: a setting's is RUNS/DATASET/SETTING.
      extra: further arguments.
      smoke: whether it is the smoke form of the config that is trained, for a try of seconds a setting.
    """
    source = choose("--dataset", dataset, experiments["DATASETS"])
    found = {}
    for setting in choose("--table", table, experiments["TABLES"])["rows"]:
        fields = experiments["SETTINGS"][setting]
        found[setting] = [
            f"--config={source['config']}{':smoke' if smoke else ''}",
            f"--workdir={pathlib.Path(runs) / dataset / setting}",
            f"--config.replicas={seeds or source['seeds']}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
            *extra,
        ]
    return found


def is_finished(arguments: list[str]) -> bool:
    """Whether the run of these arguments has nothing left to do."""
    config, workdir = training.parse(arguments)
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
    """Runs the program; returns its exit status."""
    parser = program.Parser("python launch/sweep.py", __doc__)
    parser.add_argument("--table", required=True, help="which, such as 3 or schedules")
    parser.add_argument("--dataset", required=True, help="on what: photos, cifar10, imagenet or faces")
    parser.add_argument(
        "--seeds", type=program.number(Count), help="how many; by default what the experiments file says"
    )
    parser.add_argument("--runs", default="runs/paper", help="the folder of all runs (%(default)s)")
    parser.add_argument("--experiments", metavar="FILE", help="what is compared, instead of kvae/paper/experiments.py")
    parser.add_argument("--smoke", action="store_true", help="a try: four steps a setting, in RUNS/smoke")
    parser.add_argument("--print", action="store_true", help="print the commands of what is not finished")
    chosen, extra = parser.parse_known_args(argv)
    check_local("--runs", chosen.runs)
    experiments = load_experiments(chosen.experiments)
    folder = pathlib.Path(chosen.runs, "smoke") if chosen.smoke else pathlib.Path(chosen.runs)
    todo = commands(experiments, chosen.table, chosen.dataset, chosen.seeds, str(folder), extra, chosen.smoke)
    todo = {setting: arguments for setting, arguments in todo.items() if not is_finished(arguments)}
    if chosen.print:
        for arguments in todo.values():
            print(shlex.join(["python", "-m", "kvae.main", *arguments]))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = []
    for number, (setting, arguments) in enumerate(todo.items(), 1):
        print(f"kvae: {setting}, {number} of {len(todo)}", file=sys.stderr, flush=True)
        try:
            if not train(arguments):
                failed.append(setting)
        except KeyboardInterrupt:
            print("kvae: stopped; run the same command again to go on", file=sys.stderr)
            return program.INTERRUPTED
    if failed:
        print(f"kvae: not finished: {', '.join(failed)}; what they said stands above", file=sys.stderr)
        return program.FAILED
    print(report([str(folder / chosen.dataset)], experiments, chosen.table), end="")
    return 0
