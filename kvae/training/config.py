"""What a run's config must hold, and the run's folder, which belongs to one config."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import jax

from kvae import data, models
from kvae.errors import InputError, check_names, choose
from kvae.training.journal import write_atomically

FREE_FIELDS = ("steps", "log_every_steps", "evaluate_every_steps", "checkpoint_every_steps")
"""The fields that may differ when a run goes on."""

POSITIVE = ("replicas", "batch_size", "micro_batches", *FREE_FIELDS)
FIELDS = (*POSITIVE, "seed", "patience_evaluations", "dataset", "model", "optimizer")
OPTIMIZER_FIELDS = ("learning_rate", "schedule", "warmup", "weight_decay", "clip_norm")
"""Data sets and models know their own fields."""


def check_config(config: Mapping) -> None:
    """Raises InputError for a field of the run that is missing, unknown or out of range."""
    for where, section, names in (("config", config, FIELDS), ("optimizer", config.get("optimizer"), OPTIMIZER_FIELDS)):
        for name in names:
            if name not in section:
                raise InputError(f"the {where} has no {name}; configs/photos_vqvae.py shows all fields")
        check_names(where, section, names)
    if not 0 <= config["seed"] <= 2**31 - config["replicas"]:
        raise InputError(f"seed is {config['seed']}; it must be 0 or larger, and below 2^31 with all replicas")
    for name in POSITIVE:
        if config[name] < 1:
            raise InputError(f"{name} is {config[name]}; it must be 1 or larger")
    if config["patience_evaluations"] < 0:
        raise InputError(f"patience_evaluations is {config['patience_evaluations']}; it must be 0 (never) or larger")
    for name in ("evaluate_every_steps", "checkpoint_every_steps"):
        if config[name] % config["log_every_steps"]:
            raise InputError(
                f"{name} is {config[name]}; it must be a multiple of log_every_steps ({config['log_every_steps']})"
            )


def load_data(config: Mapping) -> tuple[data.Dataset, dict]:
    """The data set, and the config with its mean and std filled in where the model has such fields.

    Raises:
      InputError: the data set cannot be read, does not fit the model, or has a mean without a std.
    """
    fields = dict(config["dataset"])
    given = {name: fields.pop(name) for name in ("mean", "std") if name in fields}
    dataset = data.load(**fields)
    names, classes = config["model"].get("label_names", ()), dataset.label_names
    if names and classes and len(names) != len(classes):
        raise InputError(f"model.label_names has {len(names)} names; {fields['name']} has {len(classes)} classes")
    model = choose("model.name", config["model"].get("name"), models.MODELS)
    if "mean" not in {field.name for field in dataclasses.fields(model)}:
        return dataset, dict(config)
    for name in ("mean", "std"):
        if name not in given:
            raise InputError(f"the dataset has no {name}; this model normalises by it, and () measures it")
    if bool(len(given["mean"])) != bool(len(given["std"])):
        raise InputError(f"dataset.mean is {given['mean']} and dataset.std {given['std']}; give both, or () for both")
    if not len(given["mean"]):
        given["mean"], given["std"] = data.channel_statistics(dataset.train)
    return dataset, {**config, "dataset": {**fields, **{name: list(value) for name, value in given.items()}}}


def open_workdir(workdir: str, config: dict) -> None:
    """Makes the run's folder and its config.json, or checks that the folder belongs to this config."""
    path = pathlib.Path(workdir) / "config.json"
    config = json.loads(json.dumps(config))
    # Without a checkpoint there is nothing that another config could spoil, such as after a mistake in the first one.
    if path.exists() and any((path.parent / "checkpoints").glob("*")):
        before, now = flatten(read_config(workdir)), flatten(config)
        differ = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        differ = [f"{name} {before.get(name)} -> {now.get(name)}" for name in differ if name not in FREE_FIELDS]
        if differ:
            raise InputError(f"{workdir} was made by another config: {'; '.join(differ)}; choose another --workdir")
    if jax.process_index() == 0:
        try:
            write_atomically(path, json.dumps(config, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"--workdir={workdir} cannot be written: {error.strerror}") from error


def read_config(workdir: str) -> dict:
    """The config of a run, from its folder; a run of an older version may lack fields.

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
    for name in ("seed", "replicas", "steps", "dataset", "model"):
        if name not in config:
            raise InputError(f"{path} is not the config of a run: it has no {name}")
    return config


def flatten(tree: Mapping, prefix: str = "") -> dict:
    """A nested config as one level: {"model.grid_shape": [16, 32], ...}."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
