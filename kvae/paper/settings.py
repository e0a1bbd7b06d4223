"""Which seeds belong to the settings of `kvae.paper.experiments` and may be averaged, and their measures.

A run is known by its config, not by its folder's name: it belongs to the setting whose fields it has.
"""

import collections
import json
import math
import pathlib
import runpy
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kvae.core.errors import InputError
from kvae.paper import experiments
from kvae.runs.opening import load
from kvae.runs.run import Run
from kvae.runs.seeds import INCIDENTAL_FIELDS, Seed

QUANTIZER, GRID_SHAPE = "model.quantizer.name", "model.quantizer.grid_shape"
CODES_ALONG = (GRID_SHAPE, "model.quantizer.levels")
"""Fields that say how many codes a quantiser has along each axis."""


class Table(NamedTuple):
    """What a table says of one data set.

    Attributes:
      name: in TABLES of the experiments.
      dataset: the data set's name.
      labels: by setting, what its row says.
      seeds: by setting, those that are averaged; an empty list where a setting has no run.
      problems: what was left out, a line each.
    """

    name: str
    dataset: str
    labels: dict[str, str]
    seeds: dict[str, list[Seed]]
    problems: list[str]


def load_experiments(path: str | None) -> dict:
    """The names of `kvae.paper.experiments`, or of a file like it.

    Raises:
      InputError: there is no such file.
    """
    if path is None:
        return vars(experiments)
    if not pathlib.Path(path).is_file():
        raise InputError(f"--experiments={path}: there is no such file; kvae/paper/experiments.py shows what it holds")
    return runpy.run_path(path)


def setting_of(config: Mapping, of: Mapping) -> str | None:
    """The setting that a flat config has, or None; of several, the one that names most of its fields.

    Fields that its quantiser does not have do not matter, and of the grid only its number of axes.
    """
    if QUANTIZER not in config:
        return None
    found = []
    for setting, fields in of["SETTINGS"].items():
        base = {name: value for name, value in of["BASE"].items() if name in config or name == QUANTIZER}
        wanted = {**base, **fields}
        axes = len(wanted.pop(GRID_SHAPE, ()))
        # As JSON, in which a tuple is a list.
        is_equal = (json.dumps(config.get(name)) == json.dumps(value) for name, value in wanted.items())
        if len(config.get(GRID_SHAPE, ())) == axes and all(is_equal):
            found.append(setting)
    return max(found, key=lambda setting: len(of["SETTINGS"][setting]), default=None)


def collect(seeds: Iterable[Seed], of: Mapping, name: str, dataset: str) -> Table:
    """The seeds of a table's settings on one data set; of several configs, the one that most seeds have."""
    labels, problems = of["TABLES"][name]["rows"], []
    varied = {*of["BASE"], *INCIDENTAL_FIELDS, *(k for setting in labels for k in of["SETTINGS"][setting])}
    sound, configs = [], collections.defaultdict(list)
    for seed in seeds:
        setting = setting_of(seed.config, of)
        if seed.config["dataset.name"] != dataset or setting not in labels:
            continue
        if seed.problem:
            problems.append(f"left out: {seed.name}: {seed.problem}")
            continue
        common = {field: value for field, value in seed.config.items() if field not in varied}
        common["number of codes"] = math.prod(side for name in CODES_ALONG for side in seed.config.get(name, ()))
        sound.append((seed, setting, common))
        configs[json.dumps(common, sort_keys=True)].append(common)
    chosen = max(configs.values(), key=len)[0] if configs else {}
    found = {setting: {} for setting in labels}
    for seed, setting, common in sound:
        # Another quantiser has other fields.
        own = {k for k in common.keys() ^ chosen.keys() if k.startswith(QUANTIZER.removesuffix("name"))}
        differ = [k for k in sorted((common.keys() | chosen.keys()) - own) if common.get(k) != chosen.get(k)]
        if differ:
            what = "; ".join(f"{field} {common.get(field)}, elsewhere {chosen.get(field)}" for field in differ)
            problems.append(f"left out: {seed.name}: another config than the rest of the table: {what}")
        elif seed.number in found[setting]:
            problems.append(f"left out: {seed.name}: the same as {found[setting][seed.number].name}")
        else:
            found[setting][seed.number] = seed
    problems += [f"missing: {labels[setting]} ({setting})" for setting, own in found.items() if not own]
    return Table(name, dataset, labels, {setting: list(own.values()) for setting, own in found.items()}, problems)


def measures_of(seed: Seed) -> dict[str, float]:
    """The measures of a seed: `loss`, `steps_10`, `steps_20`, and all metrics of its last evaluation.

    `loss` is the lowest reconstruction loss of the seed, as in the paper; `kvae.training.best` takes the whole loss.

    The steps to +10% of the lowest loss are those of the first evaluation that is at most 1.1 times the lowest; the
    lowest itself is one, so that there always is such a step.
    """
    rows = seed.evaluations
    lowest = min(row["valid/reconstruction_loss"] for row in rows)
    measures = {name.removeprefix("valid/"): value for name, value in rows[-1].items() if name.startswith("valid/")}
    measures["loss"] = lowest
    for percent in (10, 20):
        near = (row["step"] for row in rows if row["valid/reconstruction_loss"] <= (1 + percent / 100) * lowest)
        measures[f"steps_{percent}"] = next(near)
    return measures


def open_seed(seed: Seed) -> Run:
    """The run at its last checkpoint."""
    return load(seed.workdir, replica=seed.number - seed.config["seed"])
