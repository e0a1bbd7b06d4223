"""What every field of a config means, in words: `python -m kvae.main --config=FILE --help`, and configs/README.md.

Types, ranges and defaults are read from where a field is declared, its meaning from the docstring there.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from kvae import data, models
from kvae.fields import fields_of, words
from kvae.training.config import Run, Statistics, normalizes
from kvae.training.step import make_optimizer

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


def entries(path: str, owner: Callable, without: tuple[str, ...] = ()) -> Iterator[Entry]:
    """The fields of an owner, as they stand in the section `path` of a config."""
    said = meanings(owner)
    for name, field in fields_of(owner).items():
        if name in without or field.section:
            continue
        default = "must be given" if field.default is inspect.Parameter.empty else repr(field.default)
        yield Entry(f"{path}.{name}" if path else name, words(field.annotation), default, said.get(name, ""))


def of_config(config: Mapping[str, Any]) -> list[Entry]:
    """The fields of a config, those of its own data set, model and quantisers."""
    found = list(entries("", Run))
    dataset = config["dataset"]["name"]
    found += entries("dataset", data.function_of(dataset))
    if normalizes(config["model"]):
        found += entries("dataset", Statistics)
    found += _of_module("model", config["model"], models.MODELS, models.STATISTICS)
    return found + list(entries("optimizer", make_optimizer, without=("steps",)))


def _of_module(path, section, registry, without):
    found = list(entries(path, registry[section["name"]], without))
    for name, inner in section.items():
        if isinstance(inner, Mapping):
            found += _of_module(f"{path}.{name}", inner, models.QUANTIZERS, models.OF_CALLERS)
    return found


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
        "Made from the code by `python -m kvae.training.reference`. Any field can be set on the command line: "
        "`--config.optimizer.learning_rate=3e-4`. `python -m kvae.main --config=FILE --help` shows those of one file.",
        _table("The run", entries("", Run)),
        _table("`optimizer`", entries("optimizer", make_optimizer, without=("steps",))),
        _table("`dataset`, for a model that normalises its images", entries("dataset", Statistics)),
    ]
    for name in data.DATASETS:
        parts.append(_table(f'`dataset`, `name = "{name}"`', entries("dataset", data.function_of(name))))
    for name, model in models.MODELS.items():
        parts.append(_table(f'`model`, `name = "{name}"`', entries("model", model, models.STATISTICS)))
    for name, layer in models.QUANTIZERS.items():
        title = f'`model.quantizer`, `name = "{name}"`'
        parts.append(_table(title, entries("model.quantizer", layer, models.OF_CALLERS)))
    return "\n\n".join(parts) + "\n"


def _table(title, rows):
    lines = [f"## {title}", "", "| field | default | must be | meaning |", "|---|---|---|---|"]
    lines += [f"| `{row.path}` | `{row.default}` | {row.kind} | {_sentence(row.meaning)} |" for row in rows]
    return "\n".join(lines)


def _sentence(meaning: str) -> str:
    meaning = meaning.rstrip(".")
    return meaning[:1].upper() + meaning[1:]


if __name__ == "__main__":
    print(as_page(), end="")
