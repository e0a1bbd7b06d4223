"""Reads a config file, and the fields that the command line sets in it.

Only light modules are imported here, so that a typo is answered immediately.
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

from kvae.core.errors import InputError, check_names, short_repr
from kvae.core.fields import fields_of
from kvae.training.config.run_fields import SECTIONS, RunFields

FIELD = re.compile(r"--?config\.([\w.]+)(?:=(.*))?", re.DOTALL)


def config_of(chosen: str, arguments: list[str]) -> tuple[dict[str, Any], str]:
    """Reads a config file, and sets fields in it.

    Args:
      chosen: path of the file, optionally with a colon and a variant: configs/photos_vqvae.py:smoke.
      arguments: fields, such as --config.steps=100 or --config.model.quantizer.name=fsq. If an argument changes the
        `name` of a section, the fields that the new model, quantiser or data set shares with the old one are kept,
        and the others are dropped. A stack of quantisers, such as residual, wraps the quantiser that it replaces.

    Returns:
      The config, not validated yet, and its name, such as photos_vqvae_smoke.

    Raises:
      InputError: the file, variant or field does not exist, or the file raises an exception.
    """
    file, _, variant = chosen.partition(":")
    config = read_config(chosen)
    with _wrap_file_errors(file):
        config = config.to_dict()
    # Names are set first, in outer sections before inner ones, because the name decides which fields a section has.
    settings = [*_settings(arguments)]
    for path, text in sorted(settings, key=lambda setting: (not setting[0].endswith(".name"), setting[0].count("."))):
        set_field(config, path, text)
    return config, pathlib.Path(file).stem + (f"_{variant}" if variant else "")


def read_config(chosen: str) -> ConfigDict:
    """Reads a config file. Change the fields of the result as needed, and pass it to `kvae.train`.

    Example:
      >>> import kvae
      >>> config = kvae.read_config("configs/photos_vqvae.py:smoke")
      >>> config.model.quantizer.name
      'kohonen'

    Args:
      chosen: path of the file, optionally with a colon and a variant: configs/photos_vqvae.py:smoke.

    Raises:
      InputError: the file or variant does not exist, or the file raises an exception.
    """
    file, _, variant = chosen.partition(":")
    if not os.path.isfile(file):
        known = ", ".join(sorted(str(path) for path in pathlib.Path("configs").glob("*_*.py"))) or "no config files"
        problem = "it is not a file" if os.path.exists(file) else "there is no such file"
        raise InputError(f"--config={file}: {problem}; configs/ has {known}")
    with _wrap_file_errors(file), _importable(os.path.dirname(file)):
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
            raise InputError(f"--config={file}: a field is named {short_repr(name)}; names must be strings")
        if isinstance(value, (Mapping, ConfigDict)):
            _check_names_are_strings(file, value)


@contextlib.contextmanager
def _wrap_file_errors(file: str) -> Iterator[None]:
    """Turns every exception of a config file, SystemExit included, into an InputError."""
    try:
        yield
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise InputError(f"--config={file}: {_reason(error, file)}") from error


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Lets a config file import the Python files in its folder, as a script can."""
    _forget_other_folders(folder)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _forget_other_folders(folder: str) -> None:
    """Drops modules that a config in another folder imported, if this folder has a file of the same name.

    Their folders are no longer on `sys.path`, which distinguishes them from installed modules.
    """
    for path in pathlib.Path(folder).glob("*.py"):
        loaded = getattr(sys.modules.get(path.stem), "__file__", None)
        if loaded and os.path.dirname(loaded) not in sys.path and os.path.realpath(loaded) != os.path.realpath(path):
            del sys.modules[path.stem]


def _reason(error: BaseException, file: str) -> str:
    """Returns the error's type, its line in the config file, and its message."""
    if isinstance(error, SyntaxError):
        return f"it is not valid Python: {error.msg}" + (f", line {error.lineno}" if error.lineno else "")
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    where = f", line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}{where}: {short_repr(error, 300, str)}"


def _settings(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Yields the path and the text of each field that the arguments set."""
    rest = iter(arguments)
    for argument in rest:
        field = FIELD.fullmatch(argument)
        if field is None:
            raise InputError(f"{argument!r} is not an option; set fields like this: --config.steps=100")
        text = field[2] if field[2] is not None else next(rest, None)
        if text is None:
            raise InputError(f"{argument} has no value; set fields like this: --config.steps=100")
        yield field[1], text


def set_field(config: dict[str, Any], path: str, text: str) -> None:
    """Sets a field of a config in place.

    Example:
      >>> config = {"steps": 100}
      >>> set_field(config, "steps", "200")
      >>> config
      {'steps': 200}

    Args:
      config: the config, changed in place.
      path: the field, such as "model.quantizer.neighborhood".
      text: the value as text; see `literal`.

    Raises:
      InputError: the field does not exist.
    """
    *sections, last = path.split(".")
    section, where = config, "config"
    check_names(where, sections[:1], SECTIONS)
    for name in sections:
        check_names(where, [name], [key for key, value in section.items() if isinstance(value, Mapping)])
        section, where = section[name], f"{where}.{name}"
    value = literal(text, section.get(last))
    if last == "name" and sections and section.get("name") != value:
        _rename_section(section, _names(sections, value), is_quantizer=sections[0] == "model" and len(sections) > 1)
    elif last not in section:
        check_names(where, [last], {*section, *_names(sections, section.get("name"))})
    section[last] = value


def _names(sections: list[str], name: str | None) -> set[str]:
    """Returns the names of the fields and subsections of a section, given the value of its field `name`."""
    if not sections:
        return {*fields_of(RunFields), *SECTIONS}
    # Imported here because it loads every model.
    from kvae.training.config.sections import names_in

    return names_in(".".join(sections), name)


def _rename_section(section: dict[str, Any], known: set[str], *, is_quantizer: bool) -> None:
    """Drops the fields that a section's new name does not have; a new stack wraps the previous quantiser."""
    before = dict(section)
    for name in before.keys() - known:
        del section[name]
    if is_quantizer and "quantizer" in known - before.keys():
        section["quantizer"] = before


def literal(text: str, before: Any) -> Any:
    """Converts the text of a command-line argument to a value.

    Example:
      >>> literal("(4, 8)", None), literal("true", None), literal("3", "a string")
      ((4, 8), True, '3')

    Args:
      text: a Python literal, or true, false or none; anything else is a string.
      before: the value to be replaced; if it is a string, the text is returned unchanged.
    """
    if isinstance(before, str):
        return text
    if text.lower() in ("true", "false", "none"):
        text = text.capitalize()
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
