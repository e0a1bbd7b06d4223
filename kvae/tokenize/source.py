"""Where the images to be encoded come from, and how batches of them are read."""

import concurrent.futures
import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kvae.core.errors import InputError
from kvae.core.fields import short_repr
from kvae.data import ArrayExamples, Example, Examples, image_spec
from kvae.data.images import image_folder
from kvae.data.sets.folder import folder_examples
from kvae.runs.run import Run
from kvae.training.config.command_line import set_field
from kvae.training.config.sections import load_data

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
    """Images by split.

    Attributes:
      described: the section `dataset` of a config that gives them.
      splits: the examples.
      shape: of an image, (h, w).
      labels: whether they have one.
      label_names: the classes, if they have names.
      skip_unreadable: whether an image that cannot be read is left out, and named in the log.
    """

    described: Mapping[str, Any]
    splits: Mapping[str, Examples]
    shape: tuple[int, int]
    labels: bool
    label_names: tuple[str, ...] = ()
    skip_unreadable: bool = False

    def names(self, split: str) -> Sequence[str]:
        """The names of a split's images; empty where they have none."""
        return getattr(self.splits[split], "names", ())

    def digest(self, split: str) -> str:
        """A digest of these names, by which a folder that has changed is known."""
        names = "\0".join(self.names(split)).encode(errors="surrogateescape")
        return hashlib.blake2b(names, digest_size=8).hexdigest()


def folder(run: Run, path: str, size: int | None, skip_unreadable: bool) -> Source:
    """All images below a folder, in one split, made to fit as in training.

    Raises:
      InputError: there is no such folder, it holds no images, or their size is not known.
    """
    root, spec = image_folder(path, "--images"), image_spec(run.config["dataset"], size)
    examples, classes = folder_examples(root, *spec, remedy="replace or remove it, or give --skip-unreadable")
    if not len(examples):
        raise InputError(f"--images: {root} holds no images")
    described = {"name": "folder", "path": str(root), **spec._asdict()}
    return Source(described, {"train": examples}, (spec.size,) * 2, bool(classes), classes, skip_unreadable)


def dataset(run: Run, name: str | None, fields: Sequence[str]) -> Source:
    """Both splits of a data set.

    Args:
      run: whose data set is meant where no other is named.
      name: of the data set.
      fields: such as "dataset.data_dir=DIR".

    Raises:
      InputError: there is no such data set or field, it cannot be read, or it has no images.
    """
    config = {**run.config, "dataset": dict(run.config["dataset"])}
    for field in [*([f"dataset.name={name}"] if name else []), *fields]:
        path, _, text = field.partition("=")
        set_field(config, path, text)
    found, config = load_data(config)
    described = {name: value for name, value in config["dataset"].items() if name not in ("mean", "std")}
    splits = {"train": found.train, **found.validation}
    example = found.train[0]
    if "image" not in example:
        raise InputError(f"the data set {short_repr(described['name'])} has no images; it has {', '.join(example)}")
    labels = "label" in example and np.ndim(example["label"]) == 0
    return Source(described, splits, example["image"].shape[:2], labels, found.label_names if labels else ())


class Batch(NamedTuple):
    """A part of a shard.

    Attributes:
      shard: its number.
      indices: of the examples in their split, int64 [n], without those that are left out.
      arrays: by name, [n, ...].
    """

    shard: int
    indices: np.ndarray
    arrays: Example


def batches(source: Source, split: str, shards: Mapping[int, range], size: int) -> Iterator[Batch]:
    """The examples of some shards, `size` at a time at most, all of a batch from one shard.

    Raises:
      InputError: an image cannot be read.
    """
    examples = source.splits[split]

    def read(index):
        try:
            return examples[index]
        except InputError as error:
            if not source.skip_unreadable:
                raise
            log.warning("left out: %s", error)

    # Image decoders let go of the interpreter, so one thread keeps one core busy.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, rows in shards.items():
            for first in range(0, len(rows), size):
                indices = np.asarray(rows[first : first + size])
                if isinstance(examples, ArrayExamples):
                    yield Batch(number, indices, examples[indices])
                    continue
                found = list(pool.map(read, indices.tolist()))
                read_ones = [example for example in found if example is not None]
                there = indices[[example is not None for example in found]]
                arrays = {name: np.stack([one[name] for one in read_ones]) for name in (read_ones or [{}])[0]}
                yield Batch(number, there, arrays)
