"""The config fields of the run itself, in a separate module so that the command line does not load any model."""

import dataclasses

from kvae.core.fields import Count, Natural, Positive, Repeats, Replicas

SECTIONS = ("dataset", "model", "optimizer")
"""The sections of a config."""

FREE_FIELDS = ("steps", "log_every_steps", "evaluate_every_steps", "checkpoint_every_steps")
"""The fields that may change when a run is resumed."""


@dataclasses.dataclass(frozen=True)
class RunFields:
    """The fields of a config outside its sections.

    Attributes:
      steps: total number of updates.
      batch_size: examples in the global batch, over all devices.
      seed: seed of initialisation, data order and random streams.
      replicas: number of seeds trained in one run; replica i equals the run with seed + i.
      micro_batches: number of equal parts of a batch that are processed one after the other, to save memory.
      log_every_steps: updates between two rows of metrics.jsonl.
      evaluate_every_steps: updates between two evaluations; a multiple of `log_every_steps`.
      checkpoint_every_steps: updates between two checkpoints; a multiple of `log_every_steps`.
      patience_evaluations: number of evaluations without a lower loss after which the run stops; 0 never stops early.
    """

    steps: Count
    batch_size: Count
    seed: Natural = 0
    replicas: Replicas = 1
    micro_batches: Repeats = 1
    log_every_steps: Count = 50
    evaluate_every_steps: Count = 1_000
    checkpoint_every_steps: Count = 1_000
    patience_evaluations: Natural = 0


@dataclasses.dataclass(frozen=True)
class ImageStatistics:
    """Fields of the section `dataset` for models that normalise their images. They apply to every data set.

    Attributes:
      mean: mean of each channel, on the 0-255 scale; () computes `mean` and `std` from the training set.
      std: standard deviation of each channel, on the same scale; set it together with `mean`.
    """

    mean: tuple[float, ...] = ()
    std: tuple[Positive, ...] = ()
