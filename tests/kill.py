"""Kills a training run at random moments until it has come to its end, and compares it with an uninterrupted one.

    python tests/kill.py --kills=40 --workdir=DIR [--config=photos_vqvae2] [--config.model.quantizer.name=fsq ...]

A third of the kills come in the first seconds, a third while a checkpoint is being saved. Prints a line for each kill
and, at the end, how many leaves of the final state and how many rows of metrics.jsonl (without the rates) differ in any
bit. `tests/test_kill.py` does the same with two kills. DIR may be in a bucket, such as that of `tests/emulator.py`.
"""

import argparse
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np

import runs
from kvae.core.buckets import as_path, is_bucket

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE_SECONDS = 60


def command(workdir, data_dir, steps=100, config="photos_vqvae", fields=()):
    """Returns the command of a run that saves every other step."""
    settings = {
        "steps": steps, "batch_size": 8, "log_every_steps": 2, "evaluate_every_steps": steps,
        "checkpoint_every_steps": 2, **({"dataset.data_dir": data_dir} if config.startswith("photos") else {}),
    }  # fmt: skip
    flags = [*(f"--config.{name}={value}" for name, value in settings.items()), *fields]
    return [sys.executable, "-m", "kvae.main", f"--config=configs/{config}.py:smoke", f"--workdir={workdir}", *flags]


class Before(NamedTuple):
    """The state of a run's folder when the run was started."""

    temporary: set
    opened: float


def temporary(workdir):
    """Returns the folders of incomplete checkpoints; a bucket gives them no special name, but they lack a mark."""
    folders = (workdir / "checkpoints").glob("*" if is_bucket(workdir) else "*tmp*")
    return {path.name for path in folders if not (path / "commit_success.txt").exists()}


def opened(workdir):
    """Returns when the journal was last opened or written; 0 before. A bucket gets it with each checkpoint."""
    log = workdir / "metrics.jsonl"
    if not log.exists():
        return 0.0
    return log.stat().mtime if is_bucket(log) else log.stat().st_mtime


def wait_while(process, is_early):
    """Returns when `is_early()` is False; the run must still be alive."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_early():
        assert process.poll() is None, "the run ended before it was killed; give it more steps"
        assert time.monotonic() < deadline, "the moment to kill it did not come"
        time.sleep(0.002)


def at_the_start(process, workdir, before, chance):
    """Waits for a moment in the first seconds, most of which are imports."""
    time.sleep(chance.uniform(0, 5))


def while_saving(process, workdir, before, chance):
    """Waits until a checkpoint is being saved."""
    wait_while(process, lambda: temporary(workdir) <= before.temporary)
    time.sleep(chance.uniform(0, 0.05))


def in_training(process, workdir, before, chance):
    """Waits for a moment in the first seconds after the journal was opened."""
    wait_while(process, lambda: opened(workdir) == before.opened)
    time.sleep(chance.uniform(0, 3))


MOMENTS = (while_saving, in_training, at_the_start)


def run_with_kills(start, workdir, kills, seed=0, say=print):
    """Starts the run, kills it `kills` times, and then lets it come to its end."""
    chance, workdir = random.Random(seed), as_path(workdir)
    for kill in range(kills):
        moment, before = MOMENTS[kill % len(MOMENTS)], Before(temporary(workdir), opened(workdir))
        process = subprocess.Popen(start, cwd=ROOT, stderr=subprocess.DEVNULL)
        moment(process, workdir, before, chance)
        assert process.poll() is None, "the run ended before it was killed; give it more steps"
        process.kill()
        process.wait()
        names = sorted(path.name for path in (workdir / "checkpoints").glob("*"))
        say(f"kill {kill + 1}, {moment.__name__}: {', '.join(names) or 'nothing saved yet'}", flush=True)
    subprocess.run(start, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)


def differences(one, other):
    """Counts the leaves and rows in which two runs differ."""
    leaves = jax.tree.map(
        lambda a, b: not np.array_equal(a, b, equal_nan=True), runs.final_state(one), runs.final_state(other)
    )
    return sum(jax.tree.leaves(leaves)), sum(a != b for a, b in zip(runs.rows(one), runs.rows(other), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--config", default="photos_vqvae")
    arguments, fields = parser.parse_known_args()
    data_dir = tempfile.mkdtemp(prefix="kvae-data-")
    folder = as_path(arguments.workdir) if is_bucket(arguments.workdir) else pathlib.Path(arguments.workdir).absolute()
    if folder.exists():
        folder.rmtree() if is_bucket(folder) else shutil.rmtree(folder)
    starts = {
        name: command(folder / name, data_dir, 20 * arguments.kills, arguments.config, fields)
        for name in ("uninterrupted", "killed")
    }
    subprocess.run(starts["uninterrupted"], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    run_with_kills(starts["killed"], folder / "killed", arguments.kills)
    leaves, rows = differences(folder / "uninterrupted", folder / "killed")
    print(f"after {arguments.kills} kills: {leaves} leaves and {rows} rows differ from the uninterrupted run")
    return 1 if leaves or rows else 0


if __name__ == "__main__":
    sys.exit(main())
