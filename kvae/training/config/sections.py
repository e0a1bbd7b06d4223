"""Validates a config, and creates the data set and the model that it describes."""

from collections.abc import Mapping
from typing import Any

from kvae import data, models
from kvae.core.errors import InputError, UnknownNameError, check_names, short_repr
from kvae.core.fields import Declaration, fields_of, validate, validate_fields
from kvae.training.config.run_fields import SECTIONS, ImageStatistics, RunFields
from kvae.training.optimizer import make_optimizer

OPTIMIZER = Declaration(make_optimizer, without=("steps",))
"""Declares the fields of the section `optimizer`."""


def validate_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Validates the config of a run before training.

    Example:
      >>> config = validate_config({
      ...     "steps": 100,
      ...     "batch_size": 32,
      ...     "dataset": {"name": "digits"},
      ...     "model": {"name": "urlsom", "grid_shape": [4, 4]},
      ... })
      >>> config["model"]["grid_shape"], config["optimizer"]["name"]
      ((4, 4), 'adam')

    Args:
      config: nested dicts, like those in configs/; fields with a default may be missing.

    Returns:
      The config with all fields, each converted to its declared type.

    Raises:
      InputError: a field is missing, unknown, of the wrong type or out of range, or two fields contradict each other.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"the config is {short_repr(config)}; it must be a dict, like those in configs/")
    check_names("config", config, {*fields_of(RunFields), *SECTIONS})
    dataset, model, optimizer = (_section(config, name, {}) for name in SECTIONS)
    statistics, dataset = _split_statistics(dataset)
    validated = {
        **_run_fields(config),
        "dataset": data.validate_dataset_section(dataset),
        "model": models.validate_model_section(model),
        "optimizer": validate_fields("optimizer", optimizer, *OPTIMIZER),
    }
    statistics = validate_fields("dataset", statistics, ImageStatistics)
    if normalizes(validated["model"]):
        validated["dataset"] |= statistics
    elif any(statistics.values()):
        raise InputError(
            f"dataset.mean is {statistics['mean']} and dataset.std is {statistics['std']}; remove both, because this "
            "model does not normalise images"
        )
    _check_run_fields(validated)
    return validated


def validate_run(config: Mapping[str, Any], workdir: str) -> dict[str, Any]:
    """Validates the config of an existing run.

    In the section `dataset`, only `name`, `mean` and `std` are checked, and `optimizer` is not checked at all. Opening
    a run does not need the rest, and it may refer to code that is not imported.

    Args:
      config: the content of config.json.
      workdir: the run's folder, for messages.

    Raises:
      InputError: a field is missing, unknown, of the wrong type or out of range.
    """
    try:
        dataset, model, optimizer = (_section(config, name, None) for name in SECTIONS)
        validate("dataset.name", dataset.get("name"), str)
        statistics = validate_fields("dataset", _split_statistics(dataset)[0], ImageStatistics)
        return {
            **_run_fields(config),
            "dataset": {**dataset, **{name: value for name, value in statistics.items() if value}},
            "model": models.validate_model_section(model),
            "optimizer": dict(optimizer),
        }
    except InputError as error:
        hint = "; import your file that adds this name first, or pass --import=FILE to the program"
        raise InputError(f"{workdir}/config.json: {error}{hint * isinstance(error, UnknownNameError)}") from error


def _section(config: Mapping[str, Any], name: str, default: Any) -> Mapping[str, Any]:
    section = config.get(name, default)
    if not isinstance(section, Mapping):
        raise InputError(f"{name} is {short_repr(section)}; it must be a section of fields")
    return section


def _run_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    return validate_fields("config", {name: config[name] for name in config if name not in SECTIONS}, RunFields)


def _split_statistics(dataset: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a section `dataset` into its fields `mean` and `std`, if it has them, and its other fields."""
    names = fields_of(ImageStatistics)
    statistics = {name: value for name, value in dataset.items() if name in names}
    return statistics, {name: value for name, value in dataset.items() if name not in names}


def _check_run_fields(config: Mapping[str, Any]) -> None:
    if config["seed"] + config["replicas"] > 2**31:
        highest = 2**31 - config["replicas"]
        raise InputError(
            f"config.seed is {config['seed']}; with {config['replicas']} replicas it must be at most {highest}"
        )
    log_every = config["log_every_steps"]
    for name in ("evaluate_every_steps", "checkpoint_every_steps"):
        if config[name] % log_every:
            raise InputError(f"config.{name} is {config[name]}; it must be a multiple of log_every_steps ({log_every})")


def normalizes(model: Mapping[str, Any]) -> bool:
    """True if the model of a section `model` has the fields `mean` and `std`."""
    return fields_of(models.MODELS[model["name"]]).keys() >= fields_of(ImageStatistics).keys()


def declarations(path: str, name: str | None = None) -> list[Declaration]:
    """Returns the declarations of a section's fields, without the field `name`.

    Args:
      path: the section, such as "model.quantizer".
      name: the value of the field `name`; unused for the optimizer.

    Raises:
      InputError: no data set, model or quantiser has that name.
    """
    if path == "optimizer":
        return [OPTIMIZER]
    if path == "dataset":
        return [Declaration(data.function_of(name)), Declaration(ImageStatistics)]
    return [models.declaration(path, name)]


def names_in(path: str, name: str | None) -> set[str]:
    """Returns the names of all possible fields and subsections of a section; the arguments are as in `declarations`."""
    names = set() if path == "optimizer" else {"name"}
    for owner, without in declarations(path, name):
        names |= fields_of(owner).keys() - without
        if models.quantizer_field_names(owner):
            names.add("quantizer")  # applies to every quantiser of the model that has no section of its own
    return names


def load_data(config: Mapping[str, Any]) -> tuple[data.Dataset, dict[str, Any]]:
    """Loads the data set of a config, and fills in what it determines: `mean` and `std`, and fields of the model.

    Args:
      config: a validated config.

    Returns:
      The data set, and the completed config.

    Raises:
      InputError: the data set cannot be read or does not fit the model, or only one of `mean` and `std` is set.
    """
    statistics, fields = _split_statistics(config["dataset"])
    lengths = {len(value) for value in statistics.values()}
    if len(lengths) > 1:
        raise InputError(
            f"dataset.mean is {statistics['mean']} and dataset.std is {statistics['std']}; set both to one number per "
            "channel, or both to ()"
        )
    dataset = data.load(**fields)
    names, classes = config["model"].get("label_names", ()), dataset.label_names
    if names and classes and len(names) != len(classes):
        raise InputError(f"model.label_names has {len(names)} names; {fields['name']} has {len(classes)} classes")
    if lengths == {0}:
        statistics["mean"], statistics["std"] = data.channel_statistics(dataset.train)
    model = config["model"]
    model = {**model, **models.MODELS[model["name"]].fields_from_data(model, dataset)}
    return dataset, {**config, "dataset": {**fields, **statistics}, "model": model}


def build_model(config: Mapping[str, Any]) -> models.Model:
    """Creates the model of a config, with the mean and std of the section `dataset`."""
    return models.build(config["model"], **_split_statistics(config["dataset"])[0])


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested config as one dict whose keys are dotted paths.

    Example:
      >>> flatten({"steps": 4, "model": {"name": "vqvae"}})
      {'steps': 4, 'model.name': 'vqvae'}
    """
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
