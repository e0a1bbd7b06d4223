"""A run's config: its fields, their types and ranges, and what the data set adds to it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvae import data, models
from kvae.errors import InputError, check_local, check_names, choose
from kvae.fields import Count, Depth, Natural, Positive, checked, fields_of, shown, value_of
from kvae.training.step import make_optimizer

FREE_FIELDS = ("steps", "log_every_steps", "evaluate_every_steps", "checkpoint_every_steps")
"""The fields that may differ when a run goes on."""

SECTIONS = ("dataset", "model", "optimizer")


@dataclasses.dataclass(frozen=True)
class Run:
    """The fields of a run that are in no section.

    Attributes:
      steps: updates in all.
      batch_size: examples in the global batch, over all devices.
      seed: number from which initialisation, data order and random streams are drawn.
      replicas: how many seeds are trained at once; replica i is the run with seed + i.
      micro_batches: parts of a batch that are gone through one after the other, to save memory.
      log_every_steps: updates between two rows of metrics.jsonl.
      evaluate_every_steps: updates between two evaluations; a multiple of `log_every_steps`.
      checkpoint_every_steps: updates between two checkpoints; a multiple of `log_every_steps`.
      patience_evaluations: the run stops when so many evaluations in a row have found no lower loss; 0 is never.
    """

    steps: Count
    batch_size: Count
    seed: Natural = 0
    replicas: Count = 1
    micro_batches: Depth = 1
    log_every_steps: Count = 50
    evaluate_every_steps: Count = 1_000
    checkpoint_every_steps: Count = 1_000
    patience_evaluations: Natural = 0


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a section `dataset` holds beside the fields of the data set, for a model that normalises by it.

    Attributes:
      mean: mean of each channel, on the 0-255 scale; () measures it over the training set.
      std: standard deviation of each channel; given with `mean`, or () with it.
    """

    mean: tuple[float, ...] = ()
    std: tuple[Positive, ...] = ()


def checked_config(config: Mapping) -> dict[str, Any]:
    """A config with all its fields, each of its own type: what is not given takes its default.

    Raises:
      InputError: a field is missing, unknown, of another type or out of range.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"the config is {shown(config)}; it must be a dict, such as those in configs/")
    for name in SECTIONS:
        if not isinstance(config.get(name, {}), Mapping):
            raise InputError(f"{name} is {shown(config[name])}; it must be a section of fields")
    check_names("config", config, {*fields_of(Run), *SECTIONS})
    found = checked("config", {name: value for name, value in config.items() if name not in SECTIONS}, Run)
    dataset = config.get("dataset", {})
    for name, value in dataset.items():
        check_local(f"dataset.{name}", value)
    statistics = {name: value for name, value in dataset.items() if name in fields_of(Statistics)}
    found["dataset"] = data.checked_section({k: v for k, v in dataset.items() if k not in statistics})
    found["model"] = models.checked_section(config.get("model", {}))
    found["optimizer"] = checked("optimizer", config.get("optimizer", {}), make_optimizer, without=("steps",))
    statistics = checked("dataset", statistics, Statistics)
    if normalizes(found["model"]):
        found["dataset"] |= statistics
    elif any(statistics.values()):
        raise InputError(
            f"dataset.mean is {statistics['mean']}, dataset.std {statistics['std']}; this model has neither"
        )
    if found["seed"] + found["replicas"] > 2**31:
        raise InputError(f"config.seed is {found['seed']}; with {found['replicas']} replicas it must stay below 2^31")
    for name in ("evaluate_every_steps", "checkpoint_every_steps"):
        if found[name] % found["log_every_steps"]:
            raise InputError(
                f"config.{name} is {found[name]}; it must be a multiple of log_every_steps, {found['log_every_steps']}"
            )
    return found


def checked_run(config: Mapping, where: str) -> dict[str, Any]:
    """The config of a run that has been trained, each field of its own type.

    Its data set and optimiser stay as they are: what opens a run needs neither, and they may be somebody else's.

    Args:
      config: as `kvae.training.workdir.config_of_run` reads it.
      where: the run's folder, for messages.

    Raises:
      InputError: a field is missing, unknown, of another type or out of range.
    """
    try:
        for name in SECTIONS:
            if not isinstance(config.get(name), Mapping):
                raise InputError(f"{name} is {shown(config.get(name))}; it must be a section of fields")
        given = {name: value for name, value in config["dataset"].items() if name in fields_of(Statistics)}
        value_of("dataset.name", config["dataset"].get("name"), str)
        return {
            **checked("config", {name: value for name, value in config.items() if name not in SECTIONS}, Run),
            "dataset": {**config["dataset"], **{k: v for k, v in checked("dataset", given, Statistics).items() if v}},
            "model": models.checked_section(config["model"]),
            "optimizer": dict(config["optimizer"]),
        }
    except InputError as error:
        hint = "; what a file of yours adds, its import makes known: --import=FILE"
        raise InputError(f"{where}/config.json: {error}{hint * ('must be one of' in str(error))}") from error


def normalizes(model: Mapping) -> bool:
    """Whether the model of a section takes mean and std of the images."""
    return fields_of(models.MODELS[model["name"]]).keys() >= fields_of(Statistics).keys()


def fields_of_section(path: Sequence[str], name: str | None) -> set[str]:
    """The names that a section of a config may hold, such as those of ["model", "quantizer"].

    Args:
      path: of the section.
      name: that it chooses by.
    """
    if path[0] == "optimizer":
        return {*fields_of(make_optimizer)} - {"steps"}
    if path[0] == "dataset":
        return {"name", *fields_of(data.function_of(name)), *fields_of(Statistics)}
    return {"name", *fields_of(_module_of(path, name))}


def _module_of(path: Sequence[str], name: str | None) -> Callable:
    return choose(f"{'.'.join(path)}.name", name, models.MODELS if len(path) == 1 else models.QUANTIZERS)


def load_data(config: Mapping) -> tuple[data.Dataset, dict]:
    """The data set, and the config with its mean and std filled in where the model has such fields.

    Raises:
      InputError: the data set cannot be read, does not fit the model, or has a mean without a std.
    """
    fields = dict(config["dataset"])
    given = {name: fields.pop(name) for name in fields_of(Statistics) if name in fields}
    channels = {len(value) for value in given.values()}
    if len(channels) > 1:
        raise InputError(f"dataset.mean is {given['mean']} and dataset.std {given['std']}; give both, or () for both")
    dataset = data.load(**fields)
    names, classes = config["model"].get("label_names", ()), dataset.label_names
    if names and classes and len(names) != len(classes):
        raise InputError(f"model.label_names has {len(names)} names; {fields['name']} has {len(classes)} classes")
    if channels == {0}:
        given["mean"], given["std"] = data.channel_statistics(dataset.train)
    return dataset, {**config, "dataset": {**fields, **given}}


def build_model(config: Mapping) -> models.Model:
    """The model of a config whose mean and std are filled in."""
    return models.build(config["model"], **{name: config["dataset"].get(name, ()) for name in fields_of(Statistics)})


def flatten(tree: Mapping, prefix: str = "") -> dict:
    """A nested config as one level: {"model.quantizer.grid_shape": [16, 32], ...}."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
