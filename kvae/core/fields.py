"""Fields: what a section of a config, a layer or a data set may be given, read from where it is declared.

A dataclass, such as a Flax module, or a function names its fields. Their annotations hold type and range:

    shrink_step: Annotated[float, Ge(0)] = 0.1

Everything that reads fields asks here, so that every mistake is told in the same words.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import annotated_types
import numpy as np
import pydantic

from kvae.core.errors import InputError, check_local, check_names, choose

LARGEST_COUNT = 2**31 - 1

Count = Annotated[int, annotated_types.Ge(1), annotated_types.Le(LARGEST_COUNT)]
Natural = Annotated[int, annotated_types.Ge(0), annotated_types.Le(LARGEST_COUNT)]
NotNegative = Annotated[float, annotated_types.Ge(0)]
Positive = Annotated[float, annotated_types.Gt(0)]
Depth = Annotated[int, annotated_types.Ge(1), annotated_types.Le(256)]
"""How often something is repeated in a program: each time is compiled."""

Width = Annotated[int, annotated_types.Ge(1), annotated_types.Le(2**20)]
"""Numbers in a vector, or channels of an image inside a network."""

Size = Annotated[int, annotated_types.Ge(1), annotated_types.Le(4096)]
"""The side of an image, in pixels."""

Probability = Annotated[float, annotated_types.Ge(0), annotated_types.Le(1)]
Share = Annotated[float, annotated_types.Ge(0), annotated_types.Lt(1)]

Counts = Annotated[tuple[Count, ...], annotated_types.Len(1, 16)]
Widths = Annotated[tuple[Width, ...], annotated_types.Len(1, 16)]


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
    """In an annotation: the value is a key of this dict."""

    values: Mapping

    def __repr__(self):
        return f"one of {', '.join(map(str, self.values))}"


@dataclasses.dataclass(frozen=True)
class OnThisMachine:
    """In an annotation: the value is a path on this machine, see `LocalPath` and `CachePath`.

    Attributes:
      is_cache: True if the other fields determine the files at the path, so that its value changes no result.
    """

    is_cache: bool = False


LocalPath = Annotated[str, OnThisMachine()]
"""A path on this machine: emptied in runs that are shared, and free to differ between the hosts of a run."""

CachePath = Annotated[str, OnThisMachine(is_cache=True)]
"""A `LocalPath` to files that kvae prepares: it may also differ between seeds that are averaged."""


class Field(typing.NamedTuple):
    """One field of something.

    Attributes:
      annotation: its type and range.
      default: what it is where it is not given; `inspect.Parameter.empty` if it must be given.
      section: the module class that a field holds, such as a quantiser, which a config describes in a section of its
        own; None for a plain value.
    """

    annotation: Any
    default: Any
    section: type | None

    @property
    def path(self) -> OnThisMachine | None:
        """The mark of a `LocalPath` or a `CachePath`; None for any other field."""
        return next((mark for mark in _constraints(self.annotation) if isinstance(mark, OnThisMachine)), None)


NOT_CONFIGURED = ("parent", "name")
"""Fields of every Flax module that belong to Flax."""


class Declaration(typing.NamedTuple):
    """What declares the fields of a section of a config.

    Attributes:
      owner: a dataclass or a function.
      without: fields of the owner that the section does not hold.
    """

    owner: Callable
    without: Collection[str] = ()


@functools.cache
def fields_of(owner: Callable) -> dict[str, Field]:
    """The fields of a dataclass, or of a function, by name."""
    hints = typing.get_type_hints(owner, include_extras=True)
    if dataclasses.is_dataclass(owner):
        found = {}
        for field in dataclasses.fields(owner):
            made = field.default_factory is not dataclasses.MISSING
            default = field.default_factory() if made else field.default
            if field.init and field.name not in NOT_CONFIGURED:
                found[field.name] = inspect.Parameter.empty if default is dataclasses.MISSING else default
    else:
        found = {name: parameter.default for name, parameter in inspect.signature(owner).parameters.items()}
    return {name: Field(hints.get(name, Any), default, _section(hints.get(name))) for name, default in found.items()}


def _section(annotation) -> type | None:
    candidates = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    return next((kind for kind in candidates if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)


def _is_union(annotation) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def validate_fields(where: str, given: Mapping, owner: Callable, without: Collection[str] = ()) -> dict[str, Any]:
    """All fields of an owner: those that are given, in their own types, and defaults for the rest.

    Lists become tuples, and integers floats, where those are meant.

    Args:
      where: the section, for messages.
      given: by name.
      owner: the dataclass or the function that they are for.
      without: fields of the owner that do not come from there.

    Raises:
      InputError: a field is unknown, missing, of another type or out of range.
    """
    known = {name: field for name, field in fields_of(owner).items() if name not in without}
    check_names(where, given, known)
    found = {}
    for name, field in known.items():
        if name in given:
            found[name] = validate(f"{where}.{name}", given[name], field.annotation)
        elif field.default is inspect.Parameter.empty:
            raise InputError(f"{where} has no {name}; it must be {describe(field.annotation)}")
        else:
            found[name] = field.default
    return found


def validate_attributes(module) -> None:
    """Gives a dataclass instance the types that its fields declare; raises InputError where a value does not fit."""
    for name, field in fields_of(type(module)).items():
        if field.section is None:
            object.__setattr__(module, name, validate(name, getattr(module, name), field.annotation))


def validate(name: str, value, annotation):
    """A value as its annotation has it.

    Raises:
      InputError: it has another type, or is out of range.
    """
    if not _is_plain(annotation):
        return value
    for constraint in _constraints(annotation):
        if isinstance(constraint, OneOf):
            choose(name, value, constraint.values)
        if isinstance(constraint, OnThisMachine):
            check_local(name, value)
    try:
        return _adapter(annotation).validate_python(_plain(value))
    except pydantic.ValidationError as error:
        raise InputError(f"{name} is {short_repr(value)}; it must be {describe(annotation, value)}") from error


def _is_plain(annotation) -> bool:
    """Whether a config could hold such a value: a number, a string, a tuple of such."""
    if arguments := typing.get_args(annotation):
        inner = arguments[:1] if typing.get_origin(annotation) is Annotated else arguments
        return all(_is_plain(argument) for argument in inner)
    return annotation in (int, float, bool, str, types.NoneType, Ellipsis)


def _plain(value):
    """A value without the types of NumPy, and with tuples for lists, as JSON and command lines have them."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(element) for element in value)
    return value.item() if isinstance(value, np.generic) else value


@functools.cache
def _adapter(annotation) -> pydantic.TypeAdapter:
    config = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
    return pydantic.TypeAdapter(annotation, config=config)


def short_repr(value, longest: int = 60, text: Callable = repr) -> str:
    """A value in a message, on one line and not too long; an object that cannot say what it is, by its type."""
    try:
        words = " ".join(text(value).split())
    except Exception:
        words = type(value).__name__
    return words if len(words) <= longest else f"{words[: longest - 3]}..."


def _constraints(annotation) -> tuple:
    return annotation.__metadata__ if typing.get_origin(annotation) is Annotated else ()


def describe(annotation, value=None) -> str:
    """What a value must be, in words: "a number, 0 or larger". A huge limit is named only to a value beyond it."""
    constraints = _constraints(annotation)
    kind = typing.get_args(annotation)[0] if constraints else annotation
    if choices := [repr(constraint) for constraint in constraints if isinstance(constraint, OneOf)]:
        return choices[0]
    if any(isinstance(constraint, OnThisMachine) for constraint in constraints):
        return "a path on this machine"
    if typing.get_origin(kind) is tuple:
        length = tuple(c for c in constraints if isinstance(c, (annotated_types.MinLen, annotated_types.Len)))
        return _tuple(*typing.get_args(kind), length=length, value=value)
    if _is_union(kind):
        return " or ".join(describe(part) for part in typing.get_args(kind))
    ranges = " and ".join(text for constraint in constraints if (text := _range(constraint, value)))
    return ", ".join(filter(None, (KINDS.get(kind, getattr(kind, "__name__", str(kind))), ranges)))


KINDS = {int: "an integer", float: "a number", bool: "True or False", str: "a string", types.NoneType: "None"}


def _tuple(*elements, length: tuple, value) -> str:
    if elements[-1] is not Ellipsis:
        return f"({'; '.join(describe(element) for element in elements)})"
    most = next((c.max_length for c in length if isinstance(c, annotated_types.Len)), None)
    head, element = "a tuple of one or more" if length else "a tuple of", describe(elements[0])
    if most and isinstance(value, (tuple, list)) and len(value) > most:
        head = f"a tuple of one to {most}"
    if element.startswith("("):
        return f"{head} {element}"
    kind, _, ranges = element.partition(", ")
    return f"{head} {kind.split(' ')[-1]}s{f', each {ranges}' if ranges else ''}"


def _range(constraint, value) -> str:
    match constraint:
        case annotated_types.Ge(ge=limit):
            return f"{limit} or larger"
        case annotated_types.Gt(gt=limit):
            return f"larger than {limit}"
        case annotated_types.Le(le=limit):
            is_beyond = isinstance(value, int) and value > limit
            return f"at most {limit}" if limit < LARGEST_COUNT or is_beyond else ""
        case annotated_types.Lt(lt=limit):
            return f"below {limit}"
    return ""
