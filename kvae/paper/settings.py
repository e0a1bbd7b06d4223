"""Sorts finished runs into the settings of `kvae.paper.experiments`, and reads what they measured.

A run is recognised by its config, whatever its folder is called: it belongs to the setting whose fields it has.
"""

import collections
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from kvae.core.errors import InputError
from kvae.core.program import run_file
from kvae.paper import experiments as paper_experiments
from kvae.runs.opening import load
from kvae.runs.run import Run
from kvae.runs.seeds import INCIDENTAL_FIELDS, Seed

QUANTIZER, GRID_SHAPE = "model.quantizer.name", "model.quantizer.grid_shape"
CODES_PER_AXIS = (GRID_SHAPE, "model.quantizer.levels")
"""Fields that hold the number of codes along each axis, of a grid or of FSQ."""


class Table(NamedTuple):
    """The seeds of a table on one data set.

    Attributes:
      name: the table's name in `TABLES` of the experiments.
      dataset: the data set's name.
      labels: {setting: label of its row}.
      seeds: {setting: seeds to average}; an empty list for a setting without runs.
      left_out: reasons for leaving seeds out, a line each.
      missing: the rows without a run, a line each.
    """

    name: str
    dataset: str
    labels: dict[str, str]
    seeds: dict[str, list[Seed]]
    left_out: list[str]
    missing: list[str]


def load_experiments(path: str | None) -> dict[str, Any]:
    """Returns the names of `kvae.paper.experiments`, or of a file like it.

    Args:
      path: a Python file; None for kvae's own.

    Raises:
      InputError: there is no such file, it raises an exception, or it lacks BASE, SETTINGS or TABLES.
    """
    if path is None:
        return vars(paper_experiments)
    experiments = run_file("--experiments", path)
    for name in ("BASE", "SETTINGS", "TABLES"):
        if not isinstance(experiments.get(name), Mapping):
            raise InputError(f"--experiments={path} has no dict {name}; write a file like kvae/paper/experiments.py")
    return experiments


def setting_of(config: Mapping[str, Any], experiments: Mapping[str, Any]) -> str | None:
    """Returns the setting to which a run belongs, or None; if several fit, the one that names most fields.

    Fields of `BASE` that the run's quantiser does not have are ignored. Of the grid only the number of axes counts.

    Example:
      >>> from kvae.paper import experiments
      >>> setting_of({**experiments.BASE, "model.quantizer.neighborhood": "none"}, vars(experiments))
      'ema'

    Args:
      config: the run's config, flat.
      experiments: the names of `kvae.paper.experiments`.
    """
    if QUANTIZER not in config:
        return None
    matches = []
    for setting, fields in experiments["SETTINGS"].items():
        base = {name: value for name, value in experiments["BASE"].items() if name in config or name == QUANTIZER}
        wanted = {**base, **fields}
        axes = len(wanted.pop(GRID_SHAPE, ()))
        # Compared as JSON, because a config.json holds tuples as lists.
        is_equal = (json.dumps(config.get(name)) == json.dumps(value) for name, value in wanted.items())
        if len(config.get(GRID_SHAPE, ())) == axes and all(is_equal):
            matches.append(setting)
    return max(matches, key=lambda setting: len(experiments["SETTINGS"][setting]), default=None)


def collect(seeds: Iterable[Seed], experiments: Mapping[str, Any], name: str, dataset: str) -> Table:
    """Returns the seeds of a table on one data set. If their other fields differ, the most frequent config wins.

    Args:
      seeds: of all runs.
      experiments: the names of `kvae.paper.experiments`.
      name: the table's, in `TABLES`.
      dataset: the data set's name.
    """
    labels, left_out = experiments["TABLES"][name]["rows"], []
    candidates, by_config = [], collections.defaultdict(list)
    for seed in seeds:
        setting = setting_of(seed.config, experiments)
        if seed.config["dataset.name"] != dataset or setting not in labels:
            continue
        if seed.problem:
            left_out.append(f"{seed.name}: {seed.problem}")
            continue
        common = _common_fields(seed.config, experiments, labels)
        candidates.append((seed, setting, common))
        by_config[json.dumps(common, sort_keys=True)].append(common)
    usual = max(by_config.values(), key=len)[0] if by_config else {}
    chosen: dict[str, dict[int, Seed]] = {setting: {} for setting in labels}
    for seed, setting, common in candidates:
        if differences := _differences(common, usual):
            left_out.append(f"{seed.name}: its config differs from the rest of the table: {differences}")
        elif seed.number in chosen[setting]:
            left_out.append(f"{seed.name}: the same as {chosen[setting][seed.number].name}")
        else:
            chosen[setting][seed.number] = seed
    missing = [f"{labels[setting]} ({setting})" for setting, by_number in chosen.items() if not by_number]
    by_setting = {setting: list(by_number.values()) for setting, by_number in chosen.items()}
    return Table(name, dataset, labels, by_setting, left_out, missing)


def _common_fields(config, experiments, settings) -> dict[str, Any]:
    """Returns the fields of a config that all rows of a table should share."""
    varied = {*experiments["BASE"], *INCIDENTAL_FIELDS}
    varied |= {field for setting in settings for field in experiments["SETTINGS"][setting]}
    common = {field: value for field, value in config.items() if field not in varied}
    common["number of codes"] = math.prod(side for field in CODES_PER_AXIS for side in config.get(field, ()))
    return common


def _differences(common, usual) -> str:
    """Lists the fields that differ, ignoring fields of the quantiser that only one of the two has."""
    only_one = {field for field in common.keys() ^ usual.keys() if field.startswith(QUANTIZER.removesuffix("name"))}
    fields = sorted((common.keys() | usual.keys()) - only_one)
    return "; ".join(
        f"{field} {common.get(field)}, elsewhere {usual.get(field)}"
        for field in fields
        if common.get(field) != usual.get(field)
    )


def measures_of(seed: Seed) -> dict[str, float]:
    """Returns a seed's measures: `loss`, `steps_10`, `steps_20`, and all metrics of its last evaluation.

    `loss` is the lowest validation reconstruction loss, as in the paper; `kvae.training.best` compares the whole loss.
    `steps_10` is the first evaluation whose loss is at most 1.1 times the lowest, `steps_20` at most 1.2 times. The
    lowest itself qualifies, so there always is such a step.
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
    """Opens the run at its last checkpoint, with this seed's variables."""
    return load(seed.workdir, replica=seed.number - seed.config["seed"])
