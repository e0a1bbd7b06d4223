"""Declares and validates fields: the type, range and default of each setting of a config, layer or data set.

The annotations of a function or a dataclass, such as a Flax module, declare its fields: Annotated[float, Ge(0)].
"""

import dataclasses
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import annotated_types
import numpy as np
import pydantic

from kvae.core.errors import InputError, check_local, check_names, choose, short_repr

LARGEST_COUNT = 2**31 - 1
"""The largest int32: steps, seeds and codes are int32 on the devices."""

Count = Annotated[int, annotated_types.Ge(1), annotated_types.Le(LARGEST_COUNT)]
Natural = Annotated[int, annotated_types.Ge(0), annotated_types.Le(LARGEST_COUNT)]
NotNegative = Annotated[float, annotated_types.Ge(0), annotated_types.Le(1e30)]  # times K or steps it fits in float32
Positive = Annotated[float, annotated_types.Gt(0), annotated_types.Le(1e30)]
Repeats = Annotated[int, annotated_types.Ge(1), annotated_types.Le(256)]  # copies of one part in a compiled program
Replicas = Annotated[int, annotated_types.Ge(1), annotated_types.Le(4096)]  # seeds trained at once

Channels = Annotated[int, annotated_types.Ge(1), annotated_types.Le(2**20)]
"""Number of channels inside a network, or dimension of a vector."""

Size = Annotated[int, annotated_types.Ge(1), annotated_types.Le(4096)]
"""The side of an image, in pixels."""

Probability = Annotated[float, annotated_types.Ge(0), annotated_types.Le(1)]
Share = Annotated[float, annotated_types.Ge(0), annotated_types.Lt(1)]

Shape = Annotated[tuple[Count, ...], annotated_types.Len(1, 16)]
"""Shape of a grid or an array."""

StageChannels = Annotated[tuple[Channels, ...], annotated_types.Len(1, 16)]
"""Number of channels of each stage of a network."""


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
    """Constraint in an annotation: the value must be a key of `values`, which may grow later."""

    values: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


@dataclasses.dataclass(frozen=True)
class OnThisMachine:
    """Constraint in an annotation: the value is a local path. `is_cache` marks a path to files that kvae prepares."""

    is_cache: bool = False


LocalPath = Annotated[str, OnThisMachine()]
"""A path on this machine. It is removed from shared runs, and may differ between the hosts of a run."""

CachePath = Annotated[str, OnThisMachine(is_cache=True)]
"""A `LocalPath` to files that kvae prepares. It may also differ between runs whose results are averaged."""


class Field(typing.NamedTuple):
    """A field of a dataclass or a function.

    Attributes:
      annotation: its type and range.
      default: its default value; `inspect.Parameter.empty` if it is required.
      section: the class of the module in this field, such as a quantiser, which has its own section in a config; None
        for a plain value.
    """

    annotation: Any
    default: Any
    section: type | None

    @property
    def path(self) -> OnThisMachine | None:
        """The constraint of a `LocalPath` or a `CachePath`; None for any other field."""
        return next((limit for limit in _constraints(self.annotation) if isinstance(limit, OnThisMachine)), None)


NOT_CONFIGURED = ("parent", "name")
"""Fields that Flax adds to every module."""


class Declaration(typing.NamedTuple):
    """The fields of a section: all fields of `owner`, a dataclass or function, except those in `without`."""

    owner: Callable
    without: Collection[str] = ()


@functools.cache
def fields_of(owner: Callable) -> dict[str, Field]:
    """Returns the fields of a dataclass or a function by name, in declaration order.

    Example:
      >>> def resize(size: Count, crop: bool = True): ...
      >>> fields_of(resize)["crop"].default
      True
    """
    hints = typing.get_type_hints(owner, include_extras=True)
    if dataclasses.is_dataclass(owner):
        defaults = {}
        for field in dataclasses.fields(owner):
            has_factory = field.default_factory is not dataclasses.MISSING
            default = field.default_factory() if has_factory else field.default
            if field.init and field.name not in NOT_CONFIGURED:
                defaults[field.name] = inspect.Parameter.empty if default is dataclasses.MISSING else default
    else:
        defaults = {name: parameter.default for name, parameter in inspect.signature(owner).parameters.items()}
    return {name: Field(hints.get(name, Any), default, _section(hints.get(name))) for name, default in defaults.items()}


def _section(annotation: Any) -> type | None:
    candidates = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    return next((kind for kind in candidates if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def validate_fields(
    where: str, values: Mapping[str, Any], owner: Callable, without: Collection[str] = ()
) -> dict[str, Any]:
    """Validates fields, and fills in the defaults of missing ones.

    Example:
      >>> def resize(size: Count, ratio: float = 1.0): ...
      >>> validate_fields("dataset", {"size": 8}, resize)
      {'size': 8, 'ratio': 1.0}

    Args:
      where: the section, for messages.
      values: values by field name.
      owner: the dataclass or function that declares the fields.
      without: fields of the owner that are not allowed here.

    Returns:
      All fields by name, each converted to its declared type: lists to tuples, and integers to floats.

    Raises:
      InputError: a field is unknown, missing, of the wrong type or out of range.
    """
    known = {name: field for name, field in fields_of(owner).items() if name not in without}
    check_names(where, values, known)
    validated = {}
    for name, field in known.items():
        if name in values:
            validated[name] = validate(f"{where}.{name}", values[name], field.annotation)
        elif field.default is inspect.Parameter.empty:
            raise InputError(f"{where}.{name} is missing; it must be {describe(field.annotation)}")
        else:
            validated[name] = field.default
    return validated


def validate_attributes(module: Any) -> None:
    """Converts the attributes of a dataclass instance, such as a Flax module, to their declared types, in place.

    Raises:
      InputError: an attribute is of the wrong type or out of range.
    """
    for name, field in fields_of(type(module)).items():
        if field.section is None:
            object.__setattr__(module, name, validate(name, getattr(module, name), field.annotation))


def validate(name: str, value: Any, annotation: Any) -> Any:
    """Returns a value converted to the type of its annotation.

    Example:
      >>> validate("size", [4, 8], Shape)
      (4, 8)
      >>> validate("size", 0, Count)
      Traceback (most recent call last):
      kvae.core.errors.InputError: size is 0; it must be an integer >= 1

    Args:
      name: the field, for messages.
      value: its value, which may be a NumPy scalar or a list.
      annotation: type and range. If a config cannot contain values of this type, the value is returned unchecked.

    Raises:
      InputError: the value is of the wrong type or out of range.
    """
    if not _is_plain(annotation):
        return value
    if isinstance(value, (list, tuple)) and (names := _names_in_tuple(annotation)):
        for element in value:
            choose(name, element, names.values)
    for constraint in _constraints(annotation):
        if isinstance(constraint, OneOf):
            choose(name, value, constraint.values)
        if isinstance(constraint, OnThisMachine):
            check_local(name, value)
            value = os.fspath(value)
    try:
        return _adapter(annotation).validate_python(_plain(value))
    except pydantic.ValidationError as error:
        raise InputError(f"{name} is {short_repr(value)}; it must be {describe(annotation, value)}") from error


def _is_plain(annotation: Any) -> bool:
    """True if a config can contain values of this type: numbers, booleans, strings, None, and tuples of them."""
    if arguments := typing.get_args(annotation):
        inner = arguments[:1] if typing.get_origin(annotation) is Annotated else arguments
        return all(_is_plain(argument) for argument in inner)
    return annotation in (int, float, bool, str, types.NoneType, Ellipsis)


def _plain(value: Any) -> Any:
    """Returns a value with NumPy scalars replaced by Python scalars, and lists by tuples."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(element) for element in value)
    return value.item() if isinstance(value, np.generic) else value


@functools.cache
def _adapter(annotation: Any) -> pydantic.TypeAdapter:
    config = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
    return pydantic.TypeAdapter(annotation, config=config)


def _constraints(annotation: Any) -> tuple:
    return annotation.__metadata__ if typing.get_origin(annotation) is Annotated else ()


def _names_in_tuple(annotation: Any) -> OneOf | None:
    """Returns the constraint on the elements of a tuple of names; None for other annotations."""
    element = typing.get_args(annotation)[0] if typing.get_origin(annotation) is tuple else None
    return next((constraint for constraint in _constraints(element) if isinstance(constraint, OneOf)), None)


def describe(annotation: Any, value: Any = None) -> str:
    """Returns the type and range of an annotation in words.

    Example:
      >>> describe(Shape)
      'a tuple of one or more integers, each >= 1'

    Args:
      annotation: type and range.
      value: the rejected value; limits as large as int32's are mentioned only if the value exceeds them.
    """
    constraints = _constraints(annotation)
    kind = typing.get_args(annotation)[0] if constraints else annotation
    if choices := [repr(constraint) for constraint in constraints if isinstance(constraint, OneOf)]:
        return choices[0]
    if any(isinstance(constraint, OnThisMachine) for constraint in constraints):
        return "a path on this machine"
    if typing.get_origin(kind) is dict:
        return "a dict of strings"
    if typing.get_origin(kind) is tuple:
        length = tuple(c for c in constraints if isinstance(c, (annotated_types.MinLen, annotated_types.Len)))
        return _tuple(*typing.get_args(kind), length=length, value=value)
    if _is_union(kind):
        parts = sorted(typing.get_args(kind), key=lambda part: part is not types.NoneType)
        return " or ".join(describe(part, value) for part in parts)
    return f"{KINDS.get(kind, getattr(kind, '__name__', str(kind)))} {_range(constraints, value)}".rstrip()


KINDS = {int: "an integer", float: "a number", bool: "True or False", str: "a string", types.NoneType: "None"}
SIGNS = {"ge": ">=", "gt": ">", "lt": "<", "le": "<="}


def _tuple(*elements: Any, length: tuple, value: Any) -> str:
    if elements[-1] is not Ellipsis:
        return f"a tuple ({', '.join(describe(element) for element in elements)})"
    longest = next((c.max_length for c in length if isinstance(c, annotated_types.Len)), None)
    head, element = "a tuple of one or more" if length else "a tuple of", describe(elements[0])
    if longest and isinstance(value, (tuple, list)) and len(value) > longest:
        head = f"a tuple of 1 to {longest}"
    if element.startswith("a tuple ("):
        return f"{head} tuples {element.removeprefix('a tuple ')}"
    if element.startswith("one of "):
        return f"{head} names, each {element}"
    _, kind, *limits = element.split(" ")
    return f"{head} {kind}s{', each ' if limits else ''}{' '.join(limits)}"


def _range(constraints: tuple, value: Any) -> str:
    """Returns the limits of a number, such as "from 1 to 8", "> 0" or ">= 0 and < 1"; empty if there are none."""
    limits = {sign: getattr(c, name) for name, sign in SIGNS.items() for c in constraints if hasattr(c, name)}
    highest = limits.get("<=", 0)
    if highest >= LARGEST_COUNT and not (isinstance(value, (int, float)) and value > highest):
        del limits["<="]
    if [*limits] == [">=", "<="]:
        return f"from {limits['>=']} to {highest}"
    return " and ".join(f"{sign} {limit}" for sign, limit in limits.items())
