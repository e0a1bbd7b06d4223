"""A run's folder, which belongs to one config."""

import json
import logging
from collections.abc import Mapping

import jax

from kvae.core.buckets import as_path, check_address, check_reachable, wrap_bucket_errors
from kvae.core.errors import InputError, wrap_write_errors
from kvae.core.fields import short_repr
from kvae.core.files import read_text, write_text
from kvae.training.config.run_fields import FREE_FIELDS
from kvae.training.config.sections import flatten, validate_config
from kvae.training.workdir.checkpoint import Checkpoints

log = logging.getLogger(__name__)


def check_place(workdir: str) -> None:
    """Raises InputError if `--workdir` is neither a local path nor a folder in a bucket that can be reached."""
    check_address("--workdir", workdir)
    check_reachable(workdir)


def open_workdir(workdir: str, config: Mapping, checkpoints: Checkpoints) -> None:
    """Writes the run's config.json, or checks that the folder belongs to this config.

    Raises:
      InputError: it belongs to another, or cannot be written.
    """
    config = json.loads(json.dumps(config))
    # Without a checkpoint there is nothing that another config could spoil, such as after a mistake in the first one.
    if steps := checkpoints.steps():
        before = config_of_checkpoints(workdir, checkpoints)
        before = json.loads(json.dumps(validate_config(before)))  # with the fields that did not exist then
        if differ := differences(before, config):
            raise InputError(f"{workdir} was made by another config: {'; '.join(differ)}; choose another --workdir")
        if steps[-1] > config["steps"]:
            raise InputError(
                f"config.steps is {config['steps']}, and {workdir} has come to step {steps[-1]}; set it to that or more"
            )
        if before["steps"] != config["steps"] and config["optimizer"]["schedule"] != "constant":
            log.warning(
                "the learning rate now runs as in a run of %d steps, no longer of %d", config["steps"], before["steps"]
            )
    if jax.process_index() == 0:
        with wrap_write_errors(f"--workdir={workdir}"):
            write_text(as_path(workdir) / "config.json", json.dumps(config, indent=2) + "\n")


def differences(before: Mapping, now: Mapping) -> list[str]:
    """The fields in which two configs of one run may not differ, but do, each with both values."""
    before, now = flatten(before), flatten(now)
    differ = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    return [f"{name} {before.get(name)} -> {now.get(name)}" for name in differ if name not in FREE_FIELDS]


def config_of_checkpoints(workdir: str, checkpoints: Checkpoints) -> dict:
    """The config that the checkpoints were saved with, as it was saved; only where they hold none that of config.json.

    Raises:
      InputError: there is neither.
    """
    saved = checkpoints.config()
    return read_config_json(workdir) if saved is None else saved


def read_config_json(workdir: str) -> dict:
    """The config of a run, from its config.json, as it stands there.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = as_path(workdir) / "config.json"
    with wrap_bucket_errors(workdir):
        is_there = path.exists()
    if not is_there:
        raise InputError(f"{workdir} is no run: it has no config.json")
    try:
        config = json.loads(read_text(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not the config of a run: it is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not the config of a run: it holds {short_repr(config)}")
    for name, kind in FORM.items():
        if name not in config:
            raise InputError(f"{path} is not the config of a run: it has no {name}")
        if type(config[name]) is not kind:
            raise InputError(f"{path} is not the config of a run: {name} is {short_repr(config[name])}")
    return config


FORM = {"seed": int, "replicas": int, "steps": int, "dataset": dict, "model": dict}
"""What any config of a run has."""
