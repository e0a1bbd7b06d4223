"""The fields of a run that belong to no data set, model or quantiser."""

import dataclasses

from kvae.core.fields import Count, Depth, Natural, Positive

FREE_FIELDS = ("steps", "log_every_steps", "evaluate_every_steps", "checkpoint_every_steps")
"""The fields that may differ when a run goes on."""


SECTIONS = ("dataset", "model", "optimizer")


@dataclasses.dataclass(frozen=True)
class RunFields:
    """The fields of a run that are in no section.

    Attributes:
      steps: updates in all.
      batch_size: examples in the global batch, over all devices.
      seed: number from which initialisation, data order and random streams are drawn.
      replicas: how many seeds are trained at once; replica i is the run with seed + i.
      micro_batches: parts of a batch that are gone through one after the other, to save memory.
      log_every_steps: updates between two rows of metrics.jsonl.
      evaluate_every_steps: updates between two evaluations; a multiple of `log_every_steps`.
      checkpoint_every_steps: updates between two checkpoints; a multiple of `log_every_steps`.
      patience_evaluations: the run stops when so many evaluations in a row have found no lower loss; 0 is never.
    """

    steps: Count
    batch_size: Count
    seed: Natural = 0
    replicas: Count = 1
    micro_batches: Depth = 1
    log_every_steps: Count = 50
    evaluate_every_steps: Count = 1_000
    checkpoint_every_steps: Count = 1_000
    patience_evaluations: Natural = 0


@dataclasses.dataclass(frozen=True)
class ImageStatistics:
    """What a section `dataset` holds beside the fields of the data set, for a model that normalises by it.

    Attributes:
      mean: mean of each channel, on the 0-255 scale; () measures it over the training set.
      std: standard deviation of each channel; given with `mean`, or () with it.
    """

    mean: tuple[float, ...] = ()
    std: tuple[Positive, ...] = ()
