"""Assigns finished runs to the settings of `kvae.paper.experiments`, and reads their measures.

A run belongs to the setting that its config matches; the name of its folder does not matter.
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


class Table(NamedTuple):
    """The seeds of a table on one data set.

    Attributes:
      name: The table's name in `TABLES` of the experiments.
      dataset: The data set's name.
      labels: {setting: label of its row}.
      seeds: {setting: seeds to average}; an empty list for a setting without runs.
      left_out: One line for each seed that is left out, with the reason.
      missing: One line for each row without a run.
    """

    name: str
    dataset: str
    labels: dict[str, str]
    seeds: dict[str, list[Seed]]
    left_out: list[str]
    missing: list[str]


def load_experiments(path: str | None) -> dict[str, Any]:
    """Returns the contents of `kvae.paper.experiments`, or of a file like it, by name.

    Args:
      path: A Python file; None for `kvae.paper.experiments`.

    Raises:
      InputError: The file does not exist, raises an exception, or lacks BASE, SETTINGS or TABLES.
    """
    if path is None:
        return vars(paper_experiments)
    experiments = run_file("--experiments", path)
    for name in ("BASE", "SETTINGS", "TABLES"):
        if not isinstance(experiments.get(name), Mapping):
            raise InputError(f"--experiments={path} has no dict {name}; write a file like kvae/paper/experiments.py")
    return experiments


def setting_of(config: Mapping[str, Any], experiments: Mapping[str, Any]) -> str | None:
    """Returns the setting that a run belongs to, or None.

    Fields of `BASE` that the run's quantiser does not have are ignored. Grids match if they have the same number of
    axes. If several settings match, one with the run's number of codes wins, then the one with the most fields.

    Example:
      >>> from kvae.paper import experiments
      >>> setting_of({**experiments.BASE, "model.quantizer.neighborhood": "none"}, vars(experiments))
      'ema'

    Args:
      config: The run's config by dotted name.
      experiments: The contents of `kvae.paper.experiments`, by name.
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
            matches.append((number_of_codes(base | fields) == number_of_codes(config), len(fields), setting))
    return max(matches, key=lambda match: match[:2], default=(False, 0, None))[2]


def collect(seeds: Iterable[Seed], experiments: Mapping[str, Any], name: str, dataset: str) -> Table:
    """Returns the seeds of a table on one data set.

    If the seeds differ in fields that the table does not compare, only those with the most frequent values are kept.

    Args:
      seeds: Seeds of all runs.
      experiments: The contents of `kvae.paper.experiments`, by name.
      name: The table's name in `TABLES`.
      dataset: The data set's name.
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
            left_out.append(f"{seed.name}: a duplicate of {chosen[setting][seed.number].name}")
        else:
            chosen[setting][seed.number] = seed
    missing = [f"{labels[setting]} ({setting})" for setting, by_number in chosen.items() if not by_number]
    by_setting = {setting: list(by_number.values()) for setting, by_number in chosen.items()}
    return Table(name, dataset, labels, by_setting, left_out, missing)


def _common_fields(config, experiments, settings) -> dict[str, Any]:
    """Returns the fields of a config that must be equal in all rows of a table."""
    varied = {*experiments["BASE"], *INCIDENTAL_FIELDS}
    varied |= {field for setting in settings for field in experiments["SETTINGS"][setting]}
    common = {field: value for field, value in config.items() if field not in varied}
    common["number of codes"] = number_of_codes(config)
    return common


def number_of_codes(config: Mapping[str, Any], quantizer: str = "model.quantizer") -> int:
    """Returns the number of codes that a position can have, K, or K^q for a stack of q codebooks.

    Example:
      >>> number_of_codes({"model.quantizer.grid_shape": (16, 32)})
      512

    Args:
      config: A config by dotted name.
      quantizer: Dotted name of the quantiser's section.
    """
    parts = config.get(f"{quantizer}.depth", config.get(f"{quantizer}.groups"))
    if parts is not None:
        return number_of_codes(config, f"{quantizer}.quantizer") ** parts
    sides = [*config.get(f"{quantizer}.grid_shape", ()), *config.get(f"{quantizer}.levels", ())]
    return math.prod(sides) * 2 ** config.get(f"{quantizer}.bits", 0) * config.get(f"{quantizer}.codebook_size", 1)


def _differences(common, usual) -> str:
    """Returns the fields that differ, as text; ignores fields of the quantiser that only one of the configs has."""
    only_one = {field for field in common.keys() ^ usual.keys() if field.startswith(QUANTIZER.removesuffix("name"))}
    fields = sorted((common.keys() | usual.keys()) - only_one)
    return "; ".join(
        f"{field} {common.get(field)}, elsewhere {usual.get(field)}"
        for field in fields
        if common.get(field) != usual.get(field)
    )


def measures_of(seed: Seed) -> dict[str, float]:
    """Returns a seed's measures: `loss`, `steps_10`, `steps_20`, and all metrics of its last evaluation.

    `loss` is the lowest validation reconstruction loss, as in the paper; `kvae.training.best` compares the total loss.
    `steps_10` is the step of the first evaluation whose loss is at most 1.1 times the lowest; `steps_20` allows
    1.2 times.
    """
    rows = seed.evaluations
    lowest = min(row["valid/reconstruction_loss"] for row in rows)
    measures = {name.removeprefix("valid/"): value for name, value in rows[-1].items() if name.startswith("valid/")}
    measures["loss"] = lowest
    for percent in (10, 20):
        near = (row["step"] for row in rows if row["valid/reconstruction_loss"] <= (1 + percent / 100) * lowest)
        measures[f"steps_{percent}"] = next(near)  # the lowest loss itself qualifies
    return measures


def open_seed(seed: Seed) -> Run:
    """Opens the run of a seed at its newest intact checkpoint, with the variables of this seed."""
    return load(seed.workdir, replica=seed.number - seed.config["seed"])
