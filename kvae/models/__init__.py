"""Flax modules with typed fields, and `build`, which makes one from the fields of `config.model`."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from kvae.errors import InputError
from kvae.models.quantizers import QUANTIZERS
from kvae.models.urlsom import URLSOM
from kvae.models.vqvae import VQVAE
from kvae.models.vqvae2 import VQVAE2

MODELS = {
    "vqvae": (VQVAE, ("quantizer",)),
    "vqvae2": (VQVAE2, ("quantizer_top", "quantizer_bottom")),
    "urlsom": (URLSOM, ()),
}
"""The class of each model, and which of its fields are quantiser layers."""


def build(fields: Mapping, *, mean: Iterable[float], std: Iterable[float]) -> nn.Module:
    """The model that `config.model` describes.

    Args:
      fields: `name`, and the fields of the model under their own names. Where it has quantiser layers, theirs too, and
        `quantizer`, which says what layer that is, a name in `QUANTIZERS`.
      mean, std: of each channel of the images, on the 0-255 scale.

    Raises:
      InputError: an unknown name, or a field with an impossible value.
    """
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in dict(fields).items()}
    normalization = {"mean": tuple(float(x) for x in mean), "std": tuple(float(x) for x in std)}
    module, slots = choose("model.name", fields.pop("name", None), MODELS)
    layer = choose("model.quantizer", fields.pop("quantizer", None), QUANTIZERS) if slots else None
    layer_names = _field_names(layer) if slots else []
    dtype = choose("model.dtype", fields.pop("dtype", "float32"), {"float32": jnp.float32, "bfloat16": jnp.bfloat16})
    check_names("model", fields, {*layer_names, *_field_names(module)} - {*slots, *normalization})
    layer_fields = {name: fields.pop(name) for name in layer_names if name in fields}
    layers = {slot: layer(**layer_fields) for slot in slots}
    return module(**fields, **layers, **normalization, dtype=dtype)


def choose(field: str, name, values: Mapping):
    """The entry of `values` called `name`; an InputError that names the nearest ones where there is none."""
    if name in values:
        return values[name]
    near = difflib.get_close_matches(str(name), values, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it must be one of {', '.join(values)}"
    raise InputError(f"{field} is {name!r}; {hint}")


def check_names(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises InputError for the first name that is not known, with the nearest that is."""
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise InputError(f"{where} has no field {name!r}; {hint}")


def _field_names(module) -> list[str]:
    return [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")]
