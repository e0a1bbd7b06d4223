"""A run's config: its fields, their types and ranges, and what the data set adds to it."""

from collections.abc import Mapping
from typing import Any

from kvae import data, models
from kvae.core.errors import InputError, check_names
from kvae.core.fields import Declaration, fields_of, short_repr, validate, validate_fields
from kvae.training.config.schema import SECTIONS, ImageStatistics, RunFields
from kvae.training.optimizer import make_optimizer

OPTIMIZER = Declaration(make_optimizer, without=("steps",))
"""What declares the section `optimizer`."""


def validate_config(config: Mapping) -> dict[str, Any]:
    """A config with all its fields, each of its own type: what is not given takes its default.

    Raises:
      InputError: a field is missing, unknown, of another type or out of range.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"the config is {short_repr(config)}; it must be a dict, such as those in configs/")
    for name in SECTIONS:
        if not isinstance(config.get(name, {}), Mapping):
            raise InputError(f"{name} is {short_repr(config[name])}; it must be a section of fields")
    check_names("config", config, {*fields_of(RunFields), *SECTIONS})
    found = validate_fields(
        "config", {name: value for name, value in config.items() if name not in SECTIONS}, RunFields
    )
    dataset = config.get("dataset", {})
    statistics = {name: value for name, value in dataset.items() if name in fields_of(ImageStatistics)}
    found["dataset"] = data.validate_dataset_section({k: v for k, v in dataset.items() if k not in statistics})
    found["model"] = models.validate_model_section(config.get("model", {}))
    found["optimizer"] = validate_fields("optimizer", config.get("optimizer", {}), *OPTIMIZER)
    statistics = validate_fields("dataset", statistics, ImageStatistics)
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


def validate_run(config: Mapping, where: str) -> dict[str, Any]:
    """The config of a run that has been trained, each field of its own type.

    Its data set and optimiser stay as they are: what opens a run needs neither, and they may be somebody else's.

    Args:
      config: as `kvae.training.workdir.run_config.read_config_json` reads it.
      where: the run's folder, for messages.

    Raises:
      InputError: a field is missing, unknown, of another type or out of range.
    """
    try:
        for name in SECTIONS:
            if not isinstance(config.get(name), Mapping):
                raise InputError(f"{name} is {short_repr(config.get(name))}; it must be a section of fields")
        given = {name: value for name, value in config["dataset"].items() if name in fields_of(ImageStatistics)}
        validate("dataset.name", config["dataset"].get("name"), str)
        return {
            **validate_fields(
                "config", {name: value for name, value in config.items() if name not in SECTIONS}, RunFields
            ),
            "dataset": {
                **config["dataset"],
                **{k: v for k, v in validate_fields("dataset", given, ImageStatistics).items() if v},
            },
            "model": models.validate_model_section(config["model"]),
            "optimizer": dict(config["optimizer"]),
        }
    except InputError as error:
        hint = "; import the file of yours that adds it before, or give a program --import=FILE"
        raise InputError(f"{where}/config.json: {error}{hint * ('must be one of' in str(error))}") from error


def normalizes(model: Mapping) -> bool:
    """Whether the model of a section takes mean and std of the images."""
    return fields_of(models.MODELS[model["name"]]).keys() >= fields_of(ImageStatistics).keys()


def declarations(path: str, name: str | None = None) -> list[Declaration]:
    """What declares the fields of a section, beside its `name`.

    Args:
      path: of the section, such as "model.quantizer".
      name: by which it chooses, if it does.

    Raises:
      InputError: there is nothing of that name.
    """
    match path:
        case "optimizer":
            return [OPTIMIZER]
        case "dataset":
            return [Declaration(data.function_of(name)), Declaration(ImageStatistics)]
    return [models.declaration(path, name)]


def names_in(path: str, name: str | None) -> set[str]:
    """What the section at a path may hold; arguments are those of `declarations`."""
    names = set() if path == "optimizer" else {"name"}
    for owner, without in declarations(path, name):
        names |= fields_of(owner).keys() - without
        if models.quantizer_field_names(owner):
            names.add("quantizer")  # one for all that have no section of their own
    return names


def load_data(config: Mapping) -> tuple[data.Dataset, dict]:
    """The data set, and the config with its mean and std filled in where the model has such fields.

    Raises:
      InputError: the data set cannot be read, does not fit the model, or has a mean without a std.
    """
    fields = dict(config["dataset"])
    given = {name: fields.pop(name) for name in fields_of(ImageStatistics) if name in fields}
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
    return models.build(
        config["model"], **{name: config["dataset"].get(name, ()) for name in fields_of(ImageStatistics)}
    )


def flatten(tree: Mapping, prefix: str = "") -> dict:
    """A nested config as one level: {"model.quantizer.grid_shape": [16, 32], ...}."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
