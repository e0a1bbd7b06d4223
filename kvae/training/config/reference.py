"""What every field of a config means, in words: `python -m kvae.main --config=FILE --help`, and configs/README.md.

Types, ranges and defaults are read from where a field is declared, its meaning from the docstring there.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from kvae import data, models
from kvae.core.fields import Declaration, describe, fields_of
from kvae.training.config.schema import ImageStatistics, RunFields
from kvae.training.config.sections import OPTIMIZER, declarations, normalizes

ENTRY = re.compile(r"^(\w+(?:, \w+)*): (.*(?:\n {2,}.*)*)", re.MULTILINE)


class Entry(NamedTuple):
    """A field: its place in the config, what it must be, its default as text, and its meaning."""

    path: str
    kind: str
    default: str
    meaning: str


def meanings(owner: Callable) -> dict[str, str]:
    """What the docstrings of a class and its bases, or of a function, say of each field."""
    found = {}
    for source in reversed(inspect.getmro(owner)) if inspect.isclass(owner) else [owner]:
        text = inspect.cleandoc(
            source.__dict__.get("__doc__") or "" if inspect.isclass(source) else source.__doc__ or ""
        )
        for section in re.findall(r"^(?:Attributes|Args):\n((?:  .*\n?|\n)*)", text, re.MULTILINE):
            for names, meaning in ENTRY.findall(textwrap.dedent(section)):
                if not meaning.startswith("see `"):
                    found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def entries(path: str, declaration: Declaration) -> Iterator[Entry]:
    """The fields that a declaration gives to the section `path` of a config, other than sections in it."""
    owner, without = declaration
    said = meanings(owner)
    for name, field in fields_of(owner).items():
        if name in without or field.section:
            continue
        default = "must be given" if field.default is inspect.Parameter.empty else repr(field.default)
        yield Entry(f"{path}.{name}" if path else name, describe(field.annotation), default, said.get(name, ""))


def of_config(config: Mapping[str, Any]) -> Iterator[Entry]:
    """The fields of a config, those of its own data set, model and quantisers."""
    yield from entries("", Declaration(RunFields))
    for path, section in _sections(config):
        for declaration in declarations(path, section.get("name")):
            if declaration.owner is not ImageStatistics or normalizes(config["model"]):
                yield from entries(path, declaration)


def _sections(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping]]:
    """The sections of a config and those in them, by their paths."""
    for name, section in config.items():
        if isinstance(section, Mapping):
            yield prefix + name, section
            yield from _sections(section, f"{prefix}{name}.")


def as_text(config: Mapping[str, Any]) -> str:
    """The fields of a config for a terminal, each with the value that it has there."""
    lines = ["Fields, and their values in this config; set one with --config.FIELD=VALUE:"]
    for entry in of_config(config):
        value = config
        for name in entry.path.split("."):
            value = value.get(name, entry.default)
        lines += ["", f"  {entry.path} = {value!r}"]
        lines += textwrap.wrap(
            f"{entry.kind}. {_sentence(entry.meaning)}", 96, initial_indent="      ", subsequent_indent="      "
        )
    return "\n".join(lines) + "\n"


def as_page() -> str:
    """Every field of every data set, model and quantiser, in Markdown: configs/README.md."""
    parts = [
        "# The fields of a config",
        "Made from the code by `python -m kvae.training.config.reference`. Any field can be set on the command line: "
        "`--config.optimizer.learning_rate=3e-4`. `python -m kvae.main --config=FILE --help` shows those of one file.",
        _table("The run", "", Declaration(RunFields)),
        _table("`optimizer`", "optimizer", OPTIMIZER),
        _table("`dataset`, for a model that normalises its images", "dataset", Declaration(ImageStatistics)),
    ]
    for section, names in (
        ("dataset", data.DATASETS),
        ("model", models.MODELS),
        ("model.quantizer", models.QUANTIZERS),
    ):
        for name in names:
            parts.append(_table(f'`{section}`, `name = "{name}"`', section, declarations(section, name)[0]))
    return "\n\n".join(parts) + "\n"


def _table(title: str, path: str, declaration: Declaration) -> str:
    lines = [f"## {title}", "", "| field | default | must be | meaning |", "|---|---|---|---|"]
    for entry in entries(path, declaration):
        lines.append(f"| `{entry.path}` | `{entry.default}` | {entry.kind} | {_sentence(entry.meaning)} |")
    return "\n".join(lines)


def _sentence(meaning: str) -> str:
    meaning = meaning.rstrip(".")
    return meaning[:1].upper() + meaning[1:]


if __name__ == "__main__":
    print(as_page(), end="")
