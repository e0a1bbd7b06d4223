"""The registry of models, and `build`, which makes a model from a config."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kvae.core.errors import InputError, choose, short_repr
from kvae.core.fields import Declaration, fields_of, validate_fields
from kvae.core.image_arrays import IMAGE_STATISTICS
from kvae.models.autoencoders.vqvae import VQVAE
from kvae.models.autoencoders.vqvae2 import VQVAE2
from kvae.models.model import Model
from kvae.models.priors.model import Prior
from kvae.models.tokenisers import check_tokeniser
from kvae.models.urlsom.model import URLSOM
from kvae.quantizers import BSQ, FSQ, IBQ, LFQ, QUANTIZERS, GradientVQ, GroupedVQ, KohonenVQ, ResidualVQ, SimVQ

__all__ = [
    "BSQ",
    "FSQ",
    "IBQ",
    "LFQ",
    "MODELS",
    "QUANTIZERS",
    "URLSOM",
    "VQVAE",
    "VQVAE2",
    "GradientVQ",
    "GroupedVQ",
    "KohonenVQ",
    "Model",
    "Prior",
    "ResidualVQ",
    "SimVQ",
    "build",
    "declaration",
    "quantizer_field_names",
    "validate_model_section",
]

MODELS: dict[str, type[Model]] = {"vqvae": VQVAE, "vqvae2": VQVAE2, "urlsom": URLSOM, "prior": Prior}
"""The models that `config.model.name` can choose. Add your own by assignment."""

CALLER_FIELDS = ("axis_name", "train")
"""Fields of a quantiser that only a custom training loop sets. A config does not have them."""


def declaration(path: str, name: str | None) -> Declaration:
    """Returns the class that declares the fields of a section, and the names of its fields that the section leaves out.

    Args:
      path: path of the section: "model", or the path of a quantiser, such as "model.quantizer".
      name: the `name` in the section.

    Raises:
      InputError: no model or quantiser has this name.
    """
    registry, without = (MODELS, IMAGE_STATISTICS) if path == "model" else (QUANTIZERS, CALLER_FIELDS)
    return Declaration(choose(f"{path}.name", name, registry), without)


def validate_model_section(section: Mapping[str, Any], path: str = "model") -> dict[str, Any]:
    """Validates the section `model` of a config, and the quantiser sections inside it.

    Example:
      >>> section = {"name": "vqvae", "quantizer": {"name": "kohonen", "grid_shape": [4, 8]}}
      >>> section = validate_model_section(section)
      >>> section["embedding_dim"], section["quantizer"]["grid_shape"]
      (64, (4, 8))

    Args:
      section: `name`, and fields of that model or quantiser. A field that holds a quantiser is a section of its own;
        the section `quantizer` applies to all quantiser fields that have no section.
      path: path of the section, for messages.

    Returns:
      The section with all its fields, converted to their declared types; fields left out have their defaults.

    Raises:
      InputError: a name is unknown, or a field is unknown, missing, of another type or out of range.
    """
    if not isinstance(section, Mapping):
        raise InputError(f"{path} is {short_repr(section)}; it must be a section with a name and fields")
    module, without = declaration(path, section.get("name"))
    slots = quantizer_field_names(module)
    sections = {name: value for name, value in section.items() if name in slots or (slots and name == "quantizer")}
    plain = {name: value for name, value in section.items() if name != "name" and name not in sections}
    fields = validate_fields(path, plain, module, {*slots, *without})
    if missing := [slot for slot in slots if not sections.keys() & {slot, "quantizer"}]:
        raise InputError(
            f"{path}.{missing[0]} is missing; it must be a section with the name and fields of a quantiser"
        )
    quantizers = {name: validate_model_section(value, f"{path}.{name}") for name, value in sections.items()}
    return {"name": section["name"], **fields, **quantizers}


def build(section: Mapping[str, Any], *, mean: Iterable[float] = (), std: Iterable[float] = ()) -> Model:
    """Makes the model that the section `model` of a config describes.

    The section must have all fields, as `validate_model_section` returns it. The model checks their values.

    Example:
      >>> model = build({"name": "vqvae", "quantizer": {"name": "kohonen", "grid_shape": (4, 8)}})
      >>> model.quantizer.codebook_size
      32

    Args:
      section: see `validate_model_section`.
      mean, std: mean and standard deviation of each channel of the images, on the 0-255 scale; ignored for a model
        without these fields.

    Raises:
      InputError: a name is unknown, a value is of another type or out of range, fields do not fit together, or a model
        with `encode` and `decode` lacks something (see `kvae.models.tokenisers`).
    """
    statistics = {"mean": tuple(mean), "std": tuple(std)}
    known = fields_of(choose("model.name", section["name"], MODELS))
    model = _module(section, MODELS, {name: value for name, value in statistics.items() if name in known and value})
    check_tokeniser(model)
    return model


def _module(section: Mapping[str, Any], registry: Mapping[str, Callable], arguments: Mapping[str, Any]) -> Any:
    """Makes a module, and the quantisers in its fields, from a section."""
    fields = dict(section)
    module = registry[fields.pop("name")]
    slots = quantizer_field_names(module)
    shared = fields.pop("quantizer", None) if slots else None
    quantizers = {slot: _module(fields.pop(slot, shared), QUANTIZERS, {}) for slot in slots}
    return module(**fields, **quantizers, **arguments)


def quantizer_field_names(module: Callable) -> list[str]:
    """Returns the names of the fields of a model, or of a quantiser, that hold quantisers."""
    return [name for name, field in fields_of(module).items() if field.section]
