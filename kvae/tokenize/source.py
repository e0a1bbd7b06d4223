"""Reads the images to encode, in batches, from a folder or a data set."""

import concurrent.futures
import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kvae.core.errors import InputError, short_repr
from kvae.core.image_arrays import IMAGE_STATISTICS
from kvae.data import ArrayExamples, Example, Examples, image_spec
from kvae.data.listing import image_folder
from kvae.data.sets.folder import folder_examples
from kvae.runs.run import Run
from kvae.training.config.command_line import set_field
from kvae.training.config.sections import load_data

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
    """Images by split.

    Attributes:
      section: The section `dataset` of a config that loads the images.
      splits: The examples by split.
      shape: Height and width of an image.
      has_labels: True if the images have labels.
      label_names: Names of the classes; may be empty.
      skip_unreadable: True if an image that cannot be read is skipped with a warning.
    """

    section: Mapping[str, Any]
    splits: Mapping[str, Examples]
    shape: tuple[int, int]
    has_labels: bool
    label_names: tuple[str, ...] = ()
    skip_unreadable: bool = False

    def names(self, split: str) -> Sequence[str]:
        """Returns the names of a split's images; empty if they have none."""
        return getattr(self.splits[split], "names", ())

    def names_digest(self, split: str) -> str:
        """Returns a digest of a split's names, used to detect that a folder has changed."""
        names = "\0".join(self.names(split)).encode(errors="surrogateescape")
        return hashlib.blake2b(names, digest_size=8).hexdigest()


def folder_source(run: Run, path: str, size: int | None, skip_unreadable: bool) -> Source:
    """Returns all images below a folder as one split, resized as in training.

    Args:
      run: The run whose data set determines size and crop.
      path: The folder.
      size: Edge in pixels; None takes the size of the run's data set.
      skip_unreadable: True to skip images that cannot be read.

    Raises:
      InputError: The folder does not exist or holds no images, or their size is unknown.
    """
    root, spec = image_folder(path, "--images"), image_spec(run.config["dataset"], size)
    remedy = "replace or delete it, or pass --skip-unreadable"
    examples, classes = folder_examples(root, spec, "--images", remedy)
    section = {"name": "folder", "path": str(root), **spec._asdict()}
    return Source(section, {"train": examples}, (spec.size,) * 2, bool(classes), classes, skip_unreadable)


def dataset_source(run: Run, name: str | None, fields: Sequence[str]) -> Source:
    """Returns all splits of a data set.

    Args:
      run: The run whose data set is used by default.
      name: Name of another data set, or None.
      fields: Fields to set, such as "dataset.size=32".

    Raises:
      InputError: The data set or a field does not exist, or the data set cannot be read or has no images.
    """
    config = {**run.config, "dataset": dict(run.config["dataset"])}
    for field in [*([f"dataset.name={name}"] if name else []), *fields]:
        path, _, text = field.partition("=")
        set_field(config, path, text)
    dataset, config = load_data(config)
    section = {field: value for field, value in config["dataset"].items() if field not in IMAGE_STATISTICS}
    splits = {"train": dataset.train, **dataset.validation}
    example = dataset.train[0]
    if "image" not in example:
        raise InputError(f"the data set {short_repr(section['name'])} has no images, only {', '.join(example)}")
    has_labels = "label" in example and np.ndim(example["label"]) == 0
    return Source(section, splits, example["image"].shape[:2], has_labels, dataset.label_names if has_labels else ())


class Batch(NamedTuple):
    """A batch of examples of one shard.

    Attributes:
      shard: Number of the shard.
      indices: Indices of the examples in their split, int64 [n]; skipped examples are not included.
      arrays: The examples by name, [n, ...].
    """

    shard: int
    indices: np.ndarray
    arrays: Example


def batches(source: Source, split: str, shards: Mapping[int, range], size: int) -> Iterator[Batch]:
    """Yields the examples of shards in batches; a batch never spans two shards.

    Args:
      source: The images.
      split: Name of a split.
      shards: Indices of the examples of each shard, by number.
      size: Largest number of examples in a batch.

    Raises:
      InputError: An image cannot be read.
    """
    examples = source.splits[split]

    def read(index: int) -> Example | None:
        try:
            return examples[index]
        except InputError as error:
            if not source.skip_unreadable:
                raise
            log.warning("skipped: %s", error)
            return None

    # Image decoders release the GIL, so one thread per core decodes in parallel.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, rows in shards.items():
            for first in range(0, len(rows), size):
                indices = np.asarray(rows[first : first + size])
                if isinstance(examples, ArrayExamples):
                    yield Batch(number, indices, examples[indices])
                    continue
                results = list(pool.map(read, indices.tolist()))
                readable = [example for example in results if example is not None]
                kept = indices[[example is not None for example in results]]
                arrays = {name: np.stack([one[name] for one in readable]) for name in (readable or [{}])[0]}
                yield Batch(number, kept, arrays)
