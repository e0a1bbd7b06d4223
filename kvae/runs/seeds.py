"""The seeds of runs: what each has measured, and whether it has come to its end."""

import statistics
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from kvae.core.buckets import as_path, check_reachable, folders_with, wrap_bucket_errors
from kvae.core.errors import InputError
from kvae.training.config.sections import flatten, validate_run
from kvae.training.workdir.journal import is_finished, read_metrics
from kvae.training.workdir.metrics_file import LOSS, ROWS
from kvae.training.workdir.run_config import config_of_run

INCIDENTAL_FIELDS = {
    "seed",
    "replicas",
    "micro_batches",
    "log_every_steps",
    "checkpoint_every_steps",
    "dataset.data_dir",
}
"""Fields that may differ between seeds that are averaged."""


PARTS = ("config.json", "checkpoints", ROWS)
"""What makes a folder a run; any of it may be lost."""


class Seed(NamedTuple):
    """One seed of a run.

    Attributes:
      workdir: the run's folder.
      number: the seed.
      config: its config, flat: {"model.quantizer.grid_shape": [16, 32], ...}.
      rows: of metrics.jsonl, with this seed's values only.
      problem: why it may not be averaged in; empty where nothing is wrong.
    """

    workdir: str
    number: int
    config: dict
    rows: list[dict]
    problem: str

    @property
    def name(self) -> str:
        """The run and the seed, for a message."""
        return f"{self.workdir}, seed {self.number}"

    @property
    def evaluations(self) -> list[dict]:
        """The rows that hold an evaluation."""
        return [row for row in self.rows if LOSS in row]


def read_seeds(folders: Iterable[str]) -> list[Seed]:
    """Every seed of every run in, or below, the folders, in the order of their paths.

    Raises:
      InputError: a folder has no run, or a config.json is damaged.
    """
    seeds = [seed for run in run_folders(folders) for seed in _seeds_of(run)]
    return list({(seed.workdir, seed.number): seed for seed in seeds}.values())


def run_folders(folders: Iterable[str]) -> list[str]:
    """The runs in, or below, the folders, in the order of their paths.

    Raises:
      InputError: a folder has no run, or lies in a bucket that cannot be reached.
    """
    found = {}
    for folder in folders:
        check_reachable(folder)
        with wrap_bucket_errors(folder):
            paths = folders_with(PARTS, as_path(folder))
        if not paths:
            raise InputError(f"{folder} has no run: there is no config.json in it or below")
        found |= dict.fromkeys(map(str, sorted(paths)))
    return list(found)


def _seeds_of(run: str) -> list[Seed]:
    config = flatten(validate_run(config_of_run(run), run))
    replicas, steps, first = config["replicas"], config["steps"], config["seed"]
    rows, seeds = read_metrics(run), []
    for replica in range(replicas):
        own = [{k: v[replica] if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        seed = Seed(run, first + replica, config, own, "")
        reached = rows[-1]["step"] if rows else 0
        lost = [row["step"] for row in own if row.get(LOSS, 0) is None]
        problem = ""
        if lost:
            problem = f"its loss is not finite at step {lost[0]}"
        elif not is_finished(config, rows):
            problem = f"unfinished, at step {reached} of {steps}"
        elif not seed.evaluations:
            problem = "it was never evaluated"
        seeds.append(seed._replace(problem=problem))
    return seeds


def mean_and_std(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None where there is one value only."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def series(seeds: list[Seed], metric: str, last_step: float = np.inf) -> tuple[list[int], np.ndarray]:
    """The steps at which all seeds have a metric, and its values [seeds, steps]."""
    by_step = [{row["step"]: row[metric] for row in seed.rows if metric in row} for seed in seeds]
    steps = sorted(step for step in set.intersection(*map(set, by_step)) if step <= last_step)
    return steps, np.array([[values[step] for step in steps] for values in by_step], np.float64)
