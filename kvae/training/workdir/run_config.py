"""Reads, compares and writes the config of a run's folder. A folder belongs to one config."""

import json
import logging
from collections.abc import Mapping

import jax

from kvae.core.buckets import as_path, check_reachable, wrap_bucket_errors
from kvae.core.errors import InputError, short_repr, wrap_write_errors
from kvae.core.files import read_text, user_address, write_text
from kvae.training.config.run_fields import FREE_FIELDS
from kvae.training.config.sections import flatten, validate_config
from kvae.training.workdir.checkpoint import Checkpoints

log = logging.getLogger(__name__)

REQUIRED_FIELDS = {"seed": int, "replicas": int, "steps": int, "dataset": dict, "model": dict}
"""Fields that every run's config has, and their types."""

DEEPEST_NESTING = 32
"""Maximum depth of nested sections. Without a limit, a deep config would exceed Python's recursion limit."""


def open_address(workdir: str) -> str:
    """Returns the address of a run's folder, with `~` expanded.

    Raises:
      InputError: the workdir is not a valid local path or a folder in a reachable bucket.
    """
    workdir = user_address("--workdir", workdir)
    check_reachable(workdir)
    return workdir


def open_workdir(workdir: str, config: Mapping, checkpoints: Checkpoints) -> None:
    """Writes the run's config.json, or checks that an existing run has this config.

    A folder without checkpoints accepts any config, so that a wrong config can be corrected in the same folder.

    Args:
      workdir: The run's folder.
      config: The validated config.
      checkpoints: The checkpoints of the folder.

    Raises:
      InputError: The folder's checkpoints have another config, or the folder cannot be written.
    """
    config = json.loads(json.dumps(config))
    if steps := checkpoints.steps():
        saved = config_of_checkpoints(workdir, checkpoints)
        saved = json.loads(json.dumps(validate_config(saved)))  # adds the defaults of new fields
        if changes := differences(saved, config):
            raise InputError(f"{workdir} has another config: {'; '.join(changes)}; choose another --workdir")
        if steps[-1] > config["steps"]:
            raise InputError(
                f"config.steps is {config['steps']}; it must be at least {steps[-1]}, the last checkpoint of {workdir}"
            )
        if saved["steps"] != config["steps"] and config["optimizer"]["schedule"] != "constant":
            log.warning(
                "the learning rate now follows the schedule of a run with %d steps, not %d",
                config["steps"],
                saved["steps"],
            )
    if jax.process_index() == 0:
        with wrap_write_errors(f"--workdir={workdir}"):
            write_text(as_path(workdir) / "config.json", json.dumps(config, indent=2) + "\n")


def differences(saved: Mapping, config: Mapping) -> list[str]:
    """Returns the differences between two configs in fields that must not change during a run.

    Args:
      saved: The config of the run's checkpoints.
      config: The config to compare.

    Returns:
      The name and both values of each such field, as in "batch_size 32 -> 16".
    """
    saved, config = flatten(saved), flatten(config)
    changed = [name for name in sorted(saved.keys() | config.keys()) if saved.get(name) != config.get(name)]
    return [f"{name} {saved.get(name)} -> {config.get(name)}" for name in changed if name not in FREE_FIELDS]


def config_of_checkpoints(workdir: str, checkpoints: Checkpoints) -> dict:
    """Reads the config saved with the checkpoints, or config.json if no checkpoint has an intact one.

    Raises:
      InputError: Neither can be read.
    """
    saved = checkpoints.config()
    return read_config_json(workdir) if saved is None else saved


def read_config_json(workdir: str) -> dict:
    """Reads the config of a run from its config.json, without validating its fields.

    Raises:
      InputError: The file is missing or unreadable, or is not the config of a run.
    """
    path = as_path(workdir) / "config.json"
    with wrap_bucket_errors(workdir):
        exists = path.exists()
    if not exists:
        raise InputError(f"{workdir} is not a run: it has no config.json")
    try:
        config = json.loads(read_text(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not the config of a run: it is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not the config of a run: it is {short_repr(config)}, not a dict")
    _check_depth(path, config)
    for name, kind in REQUIRED_FIELDS.items():
        if name not in config:
            raise InputError(f"{path} is not the config of a run: it has no {name}")
        if type(config[name]) is not kind:
            kind_name = "an integer" if kind is int else "a dict"
            raise InputError(
                f"{path} is not the config of a run: {name} is {short_repr(config[name])}; it must be {kind_name}"
            )
    return config


def _check_depth(path: object, config: dict) -> None:
    level = [config]
    for _ in range(DEEPEST_NESTING):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
    if level:
        raise InputError(f"{path} is not the config of a run: it has more than {DEEPEST_NESTING} nested sections")
