"""A run's folder, which belongs to one config."""

import json
import pathlib
from collections.abc import Mapping

import jax

from kvae.errors import InputError, choose
from kvae.fields import shown
from kvae.files import write_text
from kvae.training.config import FREE_FIELDS, flatten


def open_workdir(workdir: str, config: Mapping) -> None:
    """Makes the run's folder and its config.json, or checks that the folder belongs to this config."""
    path = pathlib.Path(workdir) / "config.json"
    config = json.loads(json.dumps(config))
    # Without a checkpoint there is nothing that another config could spoil, such as after a mistake in the first one.
    if path.exists() and any((path.parent / "checkpoints").glob("*")):
        if is_of_version_0_1(json.loads(path.read_text())):
            raise InputError(
                f"{workdir} is a run of kvae 0.1: kvae.load opens it, but it cannot go on; choose another --workdir"
            )
        before, now = flatten(config_of_run(workdir)), flatten(config)
        differ = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        differ = [f"{name} {before.get(name)} -> {now.get(name)}" for name in differ if name not in FREE_FIELDS]
        if differ:
            raise InputError(f"{workdir} was made by another config: {'; '.join(differ)}; choose another --workdir")
        steps = [int(entry.name) for entry in (path.parent / "checkpoints").iterdir() if entry.name.isdecimal()]
        reached = max(steps, default=0)
        if reached > config["steps"]:
            raise InputError(
                f"config.steps is {config['steps']}, and {workdir} has come to step {reached}; set it to that or more"
            )
    if jax.process_index() == 0:
        try:
            write_text(path, json.dumps(config, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"--workdir={workdir} cannot be written: {error.strerror}") from error


def config_of_run(workdir: str) -> dict:
    """The config of a run, from its folder, in today's form.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(f"{workdir} is no run: it has no config.json")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not the config of a run: it is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not the config of a run: it holds {shown(config)}")
    for name in ("seed", "replicas", "steps", "dataset", "model"):
        if name not in config:
            raise InputError(f"{path} is not the config of a run: it has no {name}")
    return upgraded(config)


SCHEDULES = {
    "inverse": (1.0, 0.0, 1.0),
    "held": (1.0, 0.0, 0.0),
    "slow": (1.0, 0.3, 0.03),
    "floor_0.1": (1.0, 0.1, 1.0),
    "floor_0.3": (1.0, 0.3, 1.0),
    "narrowing": (16.0, 0.25, 1.0),
    "narrowing_1": (16.0, 1.0, 1.0),
}
"""By their names in version 0.1: initial and lowest strength, and what the shrink step is multiplied by."""


def is_of_version_0_1(config: Mapping) -> bool:
    """Whether a config is of kvae 0.1, which had no sections for quantisers."""
    optimizer = config.get("optimizer", {})
    return isinstance(optimizer, Mapping) and "schedule" not in optimizer


def upgraded(config: Mapping) -> dict:
    """The config of a run, of this version or of 0.1, in today's form."""
    model = config["model"]
    if not is_of_version_0_1(config) or not isinstance(model, Mapping) or not isinstance(model.get("quantizer"), str):
        return dict(config)
    model = dict(model)
    initial, lowest, factor = choose("model.schedule", model.pop("schedule", None), SCHEDULES)
    own = ("grid_shape", "neighborhood", "shrink_step", "radius", "decay", "init_count", "update_empty")
    own += ("commitment_weight", "pull", "neighbor_weight")
    quantizer = {"name": model.pop("quantizer"), "initial_strength": initial, "lowest_strength": lowest}
    quantizer |= {name: model.pop(name) for name in own if name in model}
    if isinstance(quantizer.get("shrink_step"), (int, float)):
        quantizer["shrink_step"] *= factor
    return {**config, "model": {**model, "quantizer": quantizer}}
