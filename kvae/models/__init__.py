"""Models and quantisers by name, and `build`, which makes one from the sections of a config."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kvae.core.errors import InputError, choose
from kvae.core.fields import Declaration, fields_of, short_repr, validate_fields
from kvae.models.autoencoders.vqvae import VQVAE
from kvae.models.autoencoders.vqvae2 import VQVAE2
from kvae.models.model import Model
from kvae.models.urlsom.model import URLSOM
from kvae.quantizers import FSQ, QUANTIZERS, GradientVQ, GroupedVQ, KohonenVQ, Quantizer, ResidualVQ

__all__ = [
    "FSQ",
    "MODELS",
    "QUANTIZERS",
    "URLSOM",
    "VQVAE",
    "VQVAE2",
    "GradientVQ",
    "GroupedVQ",
    "KohonenVQ",
    "Model",
    "Quantizer",
    "ResidualVQ",
    "build",
    "declaration",
    "quantizer_slots",
    "validate_section",
]

MODELS: dict[str, type[Model]] = {"vqvae": VQVAE, "vqvae2": VQVAE2, "urlsom": URLSOM}
"""By name, the models that `config.model.name` may choose."""

STATISTICS = ("mean", "std")
"""Fields of a model that describe the images: they stand in the config's section `dataset`."""

OF_CALLERS = ("axis_name", "train")
"""Fields of a quantiser that only a program of the user's own sets."""


def declaration(path: str, name: str | None) -> Declaration:
    """What declares the fields of the section at `path`: the model of that name, or anywhere below it the quantiser.

    Raises:
      InputError: there is none of that name.
    """
    registry, without = (MODELS, STATISTICS) if path == "model" else (QUANTIZERS, OF_CALLERS)
    return Declaration(choose(f"{path}.name", name, registry), without)


def validate_section(section: Mapping, where: str = "model") -> dict[str, Any]:
    """A section of a config with all its fields, and those of the sections in it.

    Args:
      section: `name`, and fields of that model or quantiser under their own names. A quantiser is a section of its own;
        a model with several may have one section `quantizer` for all that have none.
      where: its place in the config.

    Raises:
      InputError: an unknown name, or a field that is unknown, missing, of another type or out of range.
    """
    if not isinstance(section, Mapping):
        raise InputError(f"{where} is {short_repr(section)}; it must be a section with a name and fields")
    module, without = declaration(where, section.get("name"))
    slots = quantizer_slots(module)
    sections = {name: value for name, value in section.items() if name in slots or (slots and name == "quantizer")}
    plain = {name: value for name, value in section.items() if name != "name" and name not in sections}
    found = {"name": section["name"], **validate_fields(where, plain, module, {*slots, *without})}
    if missing := [slot for slot in slots if not sections.keys() & {slot, "quantizer"}]:
        raise InputError(f"{where} has no {missing[0]}; it must be a section with the name and fields of a quantiser")
    return found | {name: validate_section(value, f"{where}.{name}") for name, value in sections.items()}


def build(section: Mapping, *, mean: Iterable[float] = (), std: Iterable[float] = ()) -> Model:
    """The model that `config.model` describes.

    Args:
      section: see `validate_section`.
      mean, std: of each channel of the images, on the 0-255 scale, for a model that has such fields.

    Raises:
      InputError: as `validate_section`, or the fields do not fit together.
    """
    section = validate_section(section)
    statistics = {"mean": tuple(mean), "std": tuple(std)}
    known = fields_of(MODELS[section["name"]])
    return _module(section, MODELS, **{name: value for name, value in statistics.items() if name in known and value})


def _module(section, registry, **arguments):
    fields = dict(section)
    module = registry[fields.pop("name")]
    slots = quantizer_slots(module)
    shared = fields.pop("quantizer", None) if slots else None
    quantizers = {slot: _module(fields.pop(slot, shared), QUANTIZERS) for slot in slots}
    return module(**fields, **quantizers, **arguments)


def quantizer_slots(module: Callable) -> list[str]:
    """The fields of a model, or of a quantiser, that hold quantisers."""
    return [name for name, field in fields_of(module).items() if field.section]
