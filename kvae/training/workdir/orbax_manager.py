"""Configures Orbax's checkpoint manager for a run, and silences its log."""

import contextlib
import logging
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers, handlers

from kvae.core.buckets import bucket_error, is_bucket
from kvae.core.digests import digest_of_json
from kvae.core.errors import access_error
from kvae.core.program import QUIET_LOGGERS
from kvae.training.best import Losses, best_step, mean_over_replicas

LOSS_ITEM, CONFIG, DIGESTS = "loss", "config", "digests"
"""Names in a checkpoint: the loss among its metrics, and two items saved next to `state`."""


def best_checkpoint(metrics_by_step: Mapping[int, Mapping[str, Losses] | None]) -> int | None:
    """Applies `best_step` to checkpoints; the metrics are None for a checkpoint without a loss."""
    return best_step({step: metrics[LOSS_ITEM] for step, metrics in metrics_by_step.items() if metrics})


class KeepBest(checkpoint_managers.PreservationPolicy):
    """Keeps the best checkpoint; one without a loss is kept only while it is one of the newest."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = best_checkpoint({checkpoint.step: checkpoint.metrics for checkpoint in checkpoints})
        return [checkpoint.step == best for checkpoint in checkpoints]


class Manager(ocp.CheckpointManager):
    """Orbax's manager, except that an unreadable metrics file counts as missing.

    Orbax reads the metrics of all checkpoints on start-up. Without this class, one corrupted file would raise an
    exception there and make all checkpoints unusable.
    """

    def metrics(self, step: int) -> dict | None:
        try:
            metrics = super().metrics(step)
            digest = self.json(step, DIGESTS).get(LOSS_ITEM) if metrics else None
            return metrics if digest in (None, digest_of_json(metrics)) else None
        except Exception as error:
            if (is_bucket(self.directory) and bucket_error(error)) or access_error(error):
                raise  # the file may be intact, and this may be the best checkpoint
            return None

    def json(self, step: int, item: str) -> dict:
        """Reads a JSON item; returns {} if the checkpoint does not have it."""
        folder = self.directory / str(step) / item
        return ocp.JsonCheckpointHandler().restore(folder) if folder.exists() else {}


def make_manager(folder: pathlib.Path, *, read_only: bool) -> Manager:
    """Creates a manager that keeps the two newest checkpoints and the best one.

    Args:
      folder: The folder of checkpoints.
      read_only: True if the folder must not be created.
    """
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(2), KeepBest()]),
        # Without it Orbax does not save the losses, and a resumed run would not know its best step.
        best_fn=lambda metrics: mean_over_replicas(metrics[LOSS_ITEM]),
        best_mode="min",
        create=not read_only,
        enable_async_checkpointing=True,
    )
    registry = handlers.DefaultCheckpointHandlerRegistry()
    items = {"state": (ocp.PyTreeCheckpointHandler(), ocp.args.PyTreeSave, ocp.args.PyTreeRestore)}
    for name in (CONFIG, DIGESTS):
        items[name] = (ocp.JsonCheckpointHandler(), ocp.args.JsonSave, ocp.args.JsonRestore)
    for name, (handler, *kinds) in items.items():
        for kind in kinds:
            registry.add(name, kind, handler)
    return Manager(folder, options=options, handler_registry=registry)


@contextlib.contextmanager
def silence_orbax() -> Iterator[None]:
    """Silences Orbax's log, and the errors that its threads print; kvae reports failures in its own messages."""
    loggers, hook = [logging.getLogger(name) for name in QUIET_LOGGERS], sys.unraisablehook
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)

    def ignore_cancelled_reads(unraisable: "sys.UnraisableHookArgs") -> None:
        # After one failed read, Orbax drops the other reads, and their coroutines print errors when they are freed.
        code = getattr(unraisable.object, "cr_code", None)
        is_cancelled_read = code is not None and "orbax" in code.co_filename
        if not is_cancelled_read and str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = ignore_cancelled_reads
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        sys.unraisablehook = hook
