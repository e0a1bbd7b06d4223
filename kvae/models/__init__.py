"""Models and quantisers by name, and `build`, which makes one from the sections of a config."""

import dataclasses
from collections.abc import Iterable, Mapping

import jax.numpy as jnp

from kvae.errors import InputError, check_names, choose
from kvae.models.model import Model
from kvae.models.quantizers import QUANTIZERS
from kvae.models.urlsom import URLSOM
from kvae.models.vqvae import VQVAE
from kvae.models.vqvae2 import VQVAE2

MODELS: dict[str, type[Model]] = {"vqvae": VQVAE, "vqvae2": VQVAE2, "urlsom": URLSOM}
"""By name, the models that `config.model.name` may choose."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

NOT_CONFIGURED = ("parent", "name", "mean", "std", "axis_name", "train")
"""Fields of a module that a config does not set: flax's own, those of the data set, and those of a caller."""


def build(fields: Mapping, *, mean: Iterable[float] = (), std: Iterable[float] = ()) -> Model:
    """The model that `config.model` describes.

    Args:
      fields: `name`, and the fields of the model under their own names. Where it has quantisers, so does the config: a
        section `quantizer`, or one for each of them, with a `name` in `QUANTIZERS` and the fields of that layer.
      mean, std: of each channel of the images, on the 0-255 scale, for a model that has such fields.

    Raises:
      InputError: an unknown name, or a field that is unknown, missing or impossible.
    """
    module = choose("model.name", fields.get("name"), MODELS)
    known = {field.name for field in dataclasses.fields(module)}
    statistics = {"mean": tuple(float(x) for x in mean), "std": tuple(float(x) for x in std)}
    statistics = {name: value for name, value in statistics.items() if name in known}
    return _module("model", module, fields, statistics)


def _module(where, module, fields, arguments):
    """A module from a section of a config; sections inside become quantisers."""
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    fields.pop("name", None)
    names = {field.name for field in dataclasses.fields(module)} - {*NOT_CONFIGURED}
    slots = {name for name in names if name.startswith("quantizer")}
    # A model with several quantisers may have one section for all of them.
    shared = fields.pop("quantizer", None) if "quantizer" not in slots else None
    check_names(where, fields, names if shared is not None else names | ({"quantizer"} if slots else set()))
    for slot in sorted(slots):
        section = fields.pop(slot, shared)
        name = slot if section is not shared else "quantizer"
        if not isinstance(section, Mapping):
            raise InputError(
                f"{where}.{name} is {section!r}; it must be a section with the name and fields of a quantiser"
            )
        layer = choose(f"{where}.{name}.name", section.get("name"), QUANTIZERS)
        arguments = {**arguments, slot: _module(f"{where}.{name}", layer, section, {})}
    if "dtype" in fields:
        fields["dtype"] = choose(f"{where}.dtype", fields["dtype"], DTYPES)
    required = {
        field.name
        for field in dataclasses.fields(module)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    for name in sorted(required & names - {*fields, *arguments}):
        raise InputError(f"{where} has no {name}; a {where} of this name needs it")
    return module(**fields, **arguments)
