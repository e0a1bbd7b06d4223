"""Kills a training run at random moments until it has come to its end; then compares it with one that was left alone.

    python tests/kill.py --kills=20 --workdir=DIR

Prints a line a kill and, at the end, how many leaves of the final state and how many rows of metrics.jsonl, but for the
rates, differ in any bit. `tests/test_kill.py` does the same with two kills.
"""

import argparse
import pathlib
import random
import shutil
import subprocess
import sys
import time

import jax
import numpy as np

import runs

ROOT = pathlib.Path(__file__).parents[1]


def command(workdir, data_dir, steps=100):
    fields = {
        "steps": steps, "batch_size": 8, "log_every_steps": 2, "evaluate_every_steps": steps,
        "checkpoint_every_steps": 2, "dataset.data_dir": data_dir,
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return [sys.executable, "-m", "kvae.main", "--config=configs/photos_vqvae.py:smoke", f"--workdir={workdir}", *flags]


def run_with_kills(workdir, data_dir, kills, steps=100, seed=0, say=print):
    """Starts the run again and again, killing it `kills` times; returns the steps at which a new start found it."""
    chance = random.Random(seed)
    found = []
    for kill in range(kills):
        process = subprocess.Popen(command(workdir, data_dir, steps), cwd=ROOT, stderr=subprocess.DEVNULL)
        log = pathlib.Path(workdir) / "metrics.jsonl"
        before = log.stat().st_mtime if log.exists() else 0
        # Start-up is long and training short: wait until the journal is opened, seldom not even that.
        while (
            process.poll() is None and (not log.exists() or log.stat().st_mtime == before) and chance.random() > 0.001
        ):
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 5))
        assert process.poll() is None, f"the run ended before kill {kill + 1}; give it more steps"
        process.kill()
        process.wait()
        checkpoints = pathlib.Path(workdir) / "checkpoints"
        found.append(sorted(path.name for path in checkpoints.iterdir()) if checkpoints.exists() else [])
        say(f"kill {kill + 1}: {', '.join(found[-1]) or 'nothing saved yet'}")
    subprocess.run(command(workdir, data_dir, steps), cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    return found


def differences(one, other):
    """How many leaves and rows of two runs differ."""
    leaves = jax.tree.map(
        lambda a, b: not np.array_equal(a, b, equal_nan=True), runs.final_state(one), runs.final_state(other)
    )
    return sum(jax.tree.leaves(leaves)), sum(a != b for a, b in zip(runs.rows(one), runs.rows(other), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workdir", required=True)
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.workdir).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    steps = 20 * arguments.kills
    subprocess.run(command(folder / "whole", folder / "data", steps), cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    run_with_kills(folder / "killed", folder / "data", arguments.kills, steps)
    leaves, rows = differences(folder / "whole", folder / "killed")
    print(f"after {arguments.kills} kills: {leaves} leaves and {rows} rows differ from the uninterrupted run")
    return 1 if leaves or rows else 0


if __name__ == "__main__":
    sys.exit(main())
