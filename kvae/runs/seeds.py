"""Reads each seed of each run: its config, its metrics, and whether it is finished."""

import statistics
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from kvae import data
from kvae.core.buckets import as_path, check_reachable, folders_with, wrap_bucket_errors
from kvae.core.errors import InputError
from kvae.core.files import user_address
from kvae.training.best import LOSS
from kvae.training.config.sections import flatten, validate_run
from kvae.training.workdir.journal import is_finished, read_metrics
from kvae.training.workdir.metrics_file import ROWS, value_of_replica
from kvae.training.workdir.run_config import read_config_json

INCIDENTAL_FIELDS = {
    "seed",
    "replicas",
    "micro_batches",
    "log_every_steps",
    "checkpoint_every_steps",
}
"""Fields that may differ between seeds that are averaged."""

PARTS = ("config.json", "checkpoints", ROWS)
"""A folder that contains any of these is a run, even if others are missing."""


class Seed(NamedTuple):
    """One seed of a run.

    Attributes:
      workdir: The run's folder.
      number: The seed.
      config: The config by dotted name, without cache paths: {"model.quantizer.grid_shape": [16, 32], ...}.
      rows: The rows of metrics.jsonl with the values of this seed only.
      problem: Why it must not be averaged with others; empty if nothing is wrong.
    """

    workdir: str
    number: int
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    problem: str

    @property
    def name(self) -> str:
        """Returns the folder and the seed, for messages."""
        return f"{self.workdir}, seed {self.number}"

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Returns the rows that hold an evaluation."""
        return [row for row in self.rows if LOSS in row]


def read_seeds(folders: Iterable[str]) -> list[Seed]:
    """Reads every seed of every run in or below the folders, in the order of `run_folders`.

    Raises:
      InputError: A folder has no run, or a config.json is corrupted.
    """
    seeds = [seed for run in run_folders(folders) for seed in _seeds_of(run)]
    return list({(seed.workdir, seed.number): seed for seed in seeds}.values())


def run_folders(folders: Iterable[str]) -> list[str]:
    """Returns the run folders in or below each folder in turn, sorted by path within each.

    Raises:
      InputError: A folder has no run, or is in a bucket that cannot be reached.
    """
    runs: dict[str, None] = {}
    for folder in folders:
        folder = user_address("the folder of runs", folder)
        check_reachable(folder)
        with wrap_bucket_errors(folder):
            paths = folders_with(PARTS, as_path(folder))
        if not paths:
            raise InputError(f"{folder} has no run: no config.json in it or its subfolders")
        runs |= dict.fromkeys(map(str, sorted(paths)))
    return list(runs)


def _seeds_of(run: str) -> Iterator[Seed]:
    """Yields the seeds of a run."""
    sections = validate_run(read_config_json(run), run)
    caches = {f"dataset.{name}" for name in data.cache_paths(sections["dataset"])}
    config = {name: value for name, value in flatten(sections).items() if name not in caches}
    rows = read_metrics(run, config["replicas"])
    unfinished = ""
    if not is_finished(config, rows):
        unfinished = f"unfinished, at step {rows[-1]['step'] if rows else 0} of {config['steps']}"
    for replica in range(config["replicas"]):
        replica_rows = [{name: value_of_replica(value, replica) for name, value in row.items()} for row in rows]
        yield Seed(run, config["seed"] + replica, config, replica_rows, _problem(replica_rows, unfinished))


def until(seed: Seed, step: int) -> Seed:
    """Returns a seed with its rows up to a step. A seed that has reached the step then counts as finished."""
    rows = [row for row in seed.rows if row["step"] <= step]
    is_reached = bool(seed.rows) and seed.rows[-1]["step"] >= step
    return seed._replace(rows=rows, problem=_problem(rows, "" if is_reached else seed.problem))


def _problem(rows: list[dict[str, Any]], unfinished: str) -> str:
    """Returns why the replica with these rows must not be averaged with others; empty if nothing is wrong."""
    not_finite = [row["step"] for row in rows if row.get(LOSS, 0) is None]
    if not_finite:
        return f"its loss is not finite at step {not_finite[0]}"
    return unfinished or ("" if any(LOSS in row for row in rows) else "it was never evaluated")


def mean_and_std(values: list[float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation (None for a single value).

    Example:
      >>> mean_and_std([1.0, 3.0, 5.0])
      (3.0, 2.0)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def series(seeds: list[Seed], metric: str, last_step: float = np.inf) -> tuple[list[int], np.ndarray]:
    """Returns the steps at which all seeds have a metric, and the values there, float64 [seeds, steps].

    Args:
      seeds: One or more.
      metric: A name in their rows, such as "valid/loss".
      last_step: Last step to include.
    """
    by_step = [{row["step"]: row[metric] for row in seed.rows if metric in row} for seed in seeds]
    steps = sorted(step for step in set.intersection(*map(set, by_step)) if step <= last_step)
    return steps, np.array([[values[step] for step in steps] for values in by_step], np.float64)
