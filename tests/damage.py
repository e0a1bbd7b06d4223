"""Corrupts the newest checkpoint of a run many times; each corruption must be noticed or change nothing.

    python tests/damage.py RUN [--flips=500] [--seed=0]

Each file is deleted, emptied, halved and zeroed, and single bits are flipped in random places. Then the checkpoint is
restored for training and opened by `kvae.load`. Prints how often the newest step came back equal, how often the one
before was taken, how often one line said that nothing can be read, and every case that was silently wrong or raised
something else. `tests/test_damage.py` does the same with a few of them.
"""

import argparse
import collections
import pathlib
import random
import shutil
import sys
import tempfile

import jax
import numpy as np

import kvae
from kvae.core.errors import InputError
from kvae.training.workdir.checkpoint import Checkpoints


def flipped(place):
    """Flips one bit, at a share of the file's length."""

    def damage(path):
        content = bytearray(path.read_bytes())
        bit = int(place * 8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)

    return damage


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


class Attack:
    """Corrupted copies of one run.

    Args:
      workdir: a run with two checkpoints or more.
      scratch: an empty folder.
    """

    def __init__(self, workdir, scratch):
        self.workdir, self.scratch = pathlib.Path(workdir), pathlib.Path(scratch)
        checkpoints = Checkpoints(str(workdir), read_only=True)
        self.steps = checkpoints.steps()
        self.states = {step: checkpoints.restore_as_saved(step) for step in self.steps}
        checkpoints.close()
        self.config = kvae.load(str(workdir)).config
        self.target = jax.tree.map(jax.numpy.zeros_like, self.states[self.steps[-1]])
        self.files = sorted(str(path.relative_to(self.workdir)) for path in self.workdir.rglob("*") if path.is_file())
        newest = f"checkpoints/{self.steps[-1]}/"
        self.of_newest = [file for file in self.files if file.startswith(newest)]

    def of(self, file, damage):
        """Opens and resumes a copy; returns "newest", "before", "none", or what went wrong."""
        self.damage(file, damage)
        return self.outcome(self.loaded), self.outcome(self.restored)

    def damage(self, file, damage):
        """Makes a corrupted copy and returns its folder."""
        shutil.rmtree(self.scratch / "run", ignore_errors=True)
        shutil.copytree(self.workdir, self.scratch / "run")
        damage(self.scratch / "run" / file)
        return str(self.scratch / "run")

    def outcome(self, restore):
        try:
            step, found, expected = restore(str(self.scratch / "run"))
        except InputError:
            return "none"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        same = jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), found, expected)
        if not all(jax.tree.leaves(same)):
            return f"silently wrong at step {step}"
        return "newest" if step == self.steps[-1] else "before"

    def loaded(self, workdir):
        run = kvae.load(workdir)
        assert run.config == self.config
        state = self.states[run.step]
        expected = {"params": state["params"], **state["collections"]}
        return run.step, run.variables, jax.tree.map(lambda leaf: leaf[0], expected)

    def restored(self, workdir):
        checkpoints = Checkpoints(workdir)
        try:
            step, state = checkpoints.restore_newest(self.target)
        finally:
            checkpoints.close()
        return step, state, self.states[step]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    found = collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        attack = Attack(arguments.run, scratch)
        cases = [(file, name, damage) for file in attack.of_newest for name, damage in DAMAGES.items()]
        places = [(attack.of_newest[i % len(attack.of_newest)], chance.random()) for i in range(arguments.flips)]
        cases += [(file, f"bit at {place:.4f}", flipped(place)) for file, place in places]
        for file, name, damage in cases:
            for program, outcome in zip(("load", "resume"), attack.of(file, damage), strict=True):
                kind = outcome if outcome in ("newest", "before", "none") else "WRONG"
                found["flip" if "bit" in name else name, program, kind] += 1
                if kind == "WRONG":
                    print(f"{program}, {file}, {name}: {outcome[:300]}")
    for (name, program, kind), count in sorted(found.items()):
        print(f"{name:8} {program:7} {kind:7} {count}")
    return 1 if any(kind == "WRONG" for _, _, kind in found) else 0


if __name__ == "__main__":
    sys.exit(main())
