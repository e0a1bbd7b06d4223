"""Kills a training run at random moments until it has come to its end; then compares it with one that was left alone.

    python tests/kill.py --kills=40 --workdir=DIR [--config=photos_vqvae2] [--config.model.quantizer.name=fsq ...]

A third of the kills come in the first seconds, a third while a checkpoint is being saved. Prints a line a kill and, at
the end, how many leaves of the final state and how many rows of metrics.jsonl, but for the rates, differ in any bit.
`tests/test_kill.py` does the same with three kills. DIR may be in a bucket, such as that of `tests/emulator.py`.
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
LONGEST_WAIT_SECONDS = 60


def command(workdir, data_dir, steps=100, config="photos_vqvae", fields=()):
    """The command of a run that saves every other step."""
    own = {
        "steps": steps, "batch_size": 8, "log_every_steps": 2, "evaluate_every_steps": steps,
        "checkpoint_every_steps": 2, **({"dataset.data_dir": data_dir} if config.startswith("photos") else {}),
    }  # fmt: skip
    flags = [*(f"--config.{name}={value}" for name, value in own.items()), *fields]
    return [sys.executable, "-m", "kvae.main", f"--config=configs/{config}.py:smoke", f"--workdir={workdir}", *flags]


class Before(NamedTuple):
    """What a run's folder held as it was started."""

    temporary: set
    opened: float


def temporary(workdir):
    """The folders of checkpoints that are not whole: in a bucket, which has no names for these, without their mark."""
    found = (workdir / "checkpoints").glob("*" if is_bucket(workdir) else "*tmp*")
    return {path.name for path in found if not (path / "commit_success.txt").exists()}


def opened(workdir):
    """When the journal was opened or written last; 0 before. In a bucket it is written with each checkpoint."""
    log = workdir / "metrics.jsonl"
    if not log.exists():
        return 0.0
    return log.stat().mtime if is_bucket(log) else log.stat().st_mtime


def wait_while(process, is_early):
    """Returns when `is_early` holds no more; the run must still be there."""
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while is_early():
        assert process.poll() is None, "the run ended before it was killed; give it more steps"
        assert time.monotonic() < deadline, "the moment to kill it did not come"
        time.sleep(0.002)


def at_the_start(process, workdir, before, chance):
    """Within the first seconds, of which the imports take most."""
    time.sleep(chance.uniform(0, 5))


def while_saving(process, workdir, before, chance):
    """When a checkpoint has been begun, or a moment later."""
    wait_while(process, lambda: temporary(workdir) <= before.temporary)
    time.sleep(chance.uniform(0, 0.05))


def in_training(process, workdir, before, chance):
    """Some seconds after the journal was opened."""
    wait_while(process, lambda: opened(workdir) == before.opened)
    time.sleep(chance.uniform(0, 3))


MOMENTS = (in_training, at_the_start, while_saving)


def run_with_kills(start, workdir, kills, seed=0, say=print):
    """Starts the run again and again, killing it `kills` times, and once more to its end."""
    chance, workdir = random.Random(seed), as_path(workdir)
    for kill in range(kills):
        moment, before = MOMENTS[kill % len(MOMENTS)], Before(temporary(workdir), opened(workdir))
        process = subprocess.Popen(start, cwd=ROOT, stderr=subprocess.DEVNULL)
        moment(process, workdir, before, chance)
        assert process.poll() is None, "the run ended before it was killed; give it more steps"
        process.kill()
        process.wait()
        found = sorted(path.name for path in (workdir / "checkpoints").glob("*"))
        say(f"kill {kill + 1}, {moment.__name__}: {', '.join(found) or 'nothing saved yet'}", flush=True)
    subprocess.run(start, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)


def differences(one, other):
    """How many leaves and rows of two runs differ."""
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
        for name in ("whole", "killed")
    }
    subprocess.run(starts["whole"], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    run_with_kills(starts["killed"], folder / "killed", arguments.kills)
    leaves, rows = differences(folder / "whole", folder / "killed")
    print(f"after {arguments.kills} kills: {leaves} leaves and {rows} rows differ from the uninterrupted run")
    return 1 if leaves or rows else 0


if __name__ == "__main__":
    sys.exit(main())
