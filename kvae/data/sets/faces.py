"""The mixture of human and animal faces: CelebA-HQ and AFHQ."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

from kvae.core.errors import InputError
from kvae.core.fields import Size
from kvae.data.dataset import Dataset, Example, Examples
from kvae.data.records import (
    RecordExamples,
    data_folder,
    is_prepared,
    manual_folder,
    opened_builder,
    prepare,
    read_split,
)


def faces(size: Size = 256, data_dir: str = "") -> Dataset:
    """CelebA-HQ and AFHQ, size x size: train is one set after the other, validation each by itself.

    Both are made once from archives in `<data_dir>/downloads/manual`: afhq.zip, and celeba_hq.zip of StarGAN v2 or
    data<size>x<size>.tar of tfds's celeb_a_hq. The latter has no validation split, so its last fifteenth (2,000 of
    30,000) is held out. Images have no labels here: the two sets' classes have nothing in common.

    Args:
      size: the images' side in pixels.
      data_dir: tfds's folder; empty for its default.

    Raises:
      InputError: an archive is missing or damaged.
    """
    from kvae.data.sets.stargan import Afhq, stargan_builder

    afhq = stargan_builder(Afhq, size, data_folder(data_dir))
    celeba_hq = _celeba_hq(size, data_dir)
    manual = manual_folder(data_dir)
    missing = []
    if celeba_hq is None:
        missing.append(f"celeba_hq.zip (or data{size}x{size}.tar)")
    if not is_prepared(afhq) and not (manual / Afhq.ARCHIVE).exists():
        missing.append(Afhq.ARCHIVE)
    if missing:
        raise InputError(
            f"faces: {manual} lacks {' and '.join(missing)}; "
            "download.sh of https://github.com/clovaai/stargan-v2 fetches both zip archives"
        )
    sets = {"celeba_hq": _train_and_validation(celeba_hq), "afhq": _train_and_validation(afhq)}
    return Dataset(
        train=Concatenated([train for train, _ in sets.values()]),
        validation={name: validation for name, (_, validation) in sets.items()},
    )


def _celeba_hq(size: int, data_dir: str):
    """The builder of CelebA-HQ to use: one that is prepared before one whose archive is there, or None."""
    import tensorflow_datasets as tfds

    from kvae.data.sets.stargan import StarganCelebaHq, stargan_builder

    folder = data_folder(data_dir)
    candidates = {StarganCelebaHq.ARCHIVE: stargan_builder(StarganCelebaHq, size, folder)}
    if str(size) in tfds.builder_cls("celeb_a_hq").builder_configs:  # powers of two
        candidates[f"data{size}x{size}.tar"] = opened_builder(
            folder / "celeb_a_hq" / str(size), lambda: tfds.builder(f"celeb_a_hq/{size}", data_dir=folder)
        )
    prepared = [builder for builder in candidates.values() if is_prepared(builder)]
    possible = [builder for archive, builder in candidates.items() if (manual_folder(data_dir) / archive).exists()]
    return next(iter(prepared + possible), None)


def _train_and_validation(builder) -> tuple[RecordExamples, RecordExamples]:
    prepare(builder, needs_tensorflow=builder.name == "celeb_a_hq")
    splits = ("train", "validation")
    if "validation" not in builder.info.splits:
        held_out = max(1, builder.info.splits["train"].num_examples // 15)
        splits = (f"train[:-{held_out}]", f"train[-{held_out}:]")
    return tuple(read_split(builder, split, fields=("image",)) for split in splits)


@dataclasses.dataclass(frozen=True)
class Concatenated:
    """One set of examples after another."""

    parts: Sequence[Examples]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]

    @property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(len(part) for part in self.parts))
