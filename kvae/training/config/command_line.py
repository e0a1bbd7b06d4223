"""The training program's command line: a config file, and fields set after it.

Nothing heavy is imported here, so that a typo is told at once.
"""

import ast
import contextlib
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from kvae.core.errors import InputError, check_names
from kvae.core.fields import fields_of, short_repr
from kvae.training.config.schema import SECTIONS, RunFields

FIELD = re.compile(r"--?config\.([\w.]+)(?:=(.*))?", re.DOTALL)


def config_of(chosen: str, arguments: list[str]) -> tuple[dict, str]:
    """A config, and its name, which is that of its default folder.

    Args:
      chosen: a file, such as configs/photos_vqvae.py, and after a colon a variant of it, such as smoke.
      arguments: fields, such as --config.steps=100 or --config.model.quantizer.name=fsq. Another name for a section
        keeps the fields that the new one has too; those it lacks take their defaults. A stack, such as residual, is
        made of the quantiser that stood there.

    Raises:
      InputError: no such file, variant or field, or something in the file is wrong.
    """
    file, _, variant = chosen.partition(":")
    config = read_config(chosen)
    with _errors_of(file):
        config = config.to_dict()
    # Names first, those of outer sections before those in them: what a section may hold depends on its name.
    for path, text in sorted(_settings(arguments), key=lambda it: (not it[0].endswith(".name"), it[0].count("."))):
        set_field(config, path, text)
    return config, pathlib.Path(file).stem + (f"_{variant}" if variant else "")


def read_config(chosen: str) -> ConfigDict:
    """The config that a file describes, to be changed and given to `kvae.train`.

    Args:
      chosen: a file, such as configs/photos_vqvae.py, and after a colon a variant of it, such as smoke.

    Raises:
      InputError: there is no such file or variant, or the file fails.
    """
    file, _, variant = chosen.partition(":")
    if not os.path.isfile(file):
        known = ", ".join(sorted(str(path) for path in pathlib.Path("configs").glob("*_*.py"))) or "none here"
        what = "it is no file" if os.path.exists(file) else "there is no such file"
        raise InputError(f"--config={file}: {what}; configs/ has {known}")
    with _errors_of(file), _importable(os.path.dirname(file)):
        spec = importlib.util.spec_from_loader("config", importlib.machinery.SourceFileLoader("config", file))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(variant) if variant else module.get_config()
        if isinstance(config, (Mapping, ConfigDict)):
            _check_names_are_strings(file, config)
            return ConfigDict(config)
    raise InputError(f"--config={file}: get_config returns {short_repr(config)}; it must return a ConfigDict")


def _check_names_are_strings(file: str, section: Mapping | ConfigDict) -> None:
    for name, value in section.items():
        if not isinstance(name, str):
            raise InputError(f"--config={file}: {short_repr(name)} is no name of a field; it must be a string")
        if isinstance(value, (Mapping, ConfigDict)):
            _check_names_are_strings(file, value)


@contextlib.contextmanager
def _errors_of(file: str) -> Iterator[None]:
    """Whatever a config file raises, in one line; `sys.exit` too."""
    try:
        yield
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise InputError(f"--config={file}: {_reason(error, file)}") from error


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    """A config file may import its neighbours, as a script may."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _reason(error, file) -> str:
    """What went wrong in a config file, and in which of its lines."""
    if isinstance(error, SyntaxError):
        return f"it is no Python: {error.msg}" + (f", line {error.lineno}" if error.lineno else "")
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    where = f", line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}{where}: {short_repr(error, 300, str)}"


def _settings(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """The fields that are set, and the text of their values."""
    rest = iter(arguments)
    for argument in rest:
        field = FIELD.fullmatch(argument)
        if field is None:
            raise InputError(f"{argument!r} is not an option; fields are set as --config.steps=100")
        text = field[2] if field[2] is not None else next(rest, None)
        if text is None:
            raise InputError(f"{argument} has no value; fields are set as --config.steps=100")
        yield field[1], text


def set_field(config: dict, path: str, text: str) -> None:
    """Sets a field in place, such as "model.quantizer.neighborhood", to what its text says.

    Raises:
      InputError: there is no such field.
    """
    *sections, last = path.split(".")
    section, where = config, "config"
    check_names(where, sections[:1], SECTIONS)
    for name in sections:
        check_names(where, [name], [key for key, value in section.items() if isinstance(value, Mapping)])
        section, where = section[name], f"{where}.{name}"
    value = literal(text, section.get(last))
    if last == "name" and sections and section.get("name") != value:
        _make_room(section, _names(sections, value), is_quantizer=sections[0] == "model" and len(sections) > 1)
    elif last not in section:
        check_names(where, [last], {*section, *_names(sections, section.get("name"))})
    section[last] = value


def _names(sections: list[str], name: str | None) -> set[str]:
    """What a section that chooses `name` may hold."""
    if not sections:
        return {*fields_of(RunFields), *SECTIONS}
    # Imported here, for it loads every model.
    from kvae.training.config.sections import names_in

    return names_in(".".join(sections), name)


def _make_room(section: dict, known: set[str], is_quantizer: bool) -> None:
    """Leaves in a section what it may hold under its new name; a stack is made of the quantiser that stood there."""
    before = dict(section)
    for name in before.keys() - known:
        del section[name]
    if is_quantizer and "quantizer" in known - before.keys():
        section["quantizer"] = before


def literal(text: str, before: Any) -> Any:
    """The value that a text means, given the one before: text stays text where that was, and true is True."""
    if isinstance(before, str):
        return text
    if text.lower() in ("true", "false", "none"):
        text = text.capitalize()
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
