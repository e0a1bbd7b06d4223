"""Checkpoints of a run: orbax, asynchronous, the newest and the best kept."""

import logging
import pathlib
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from kvae.errors import InputError
from kvae.training.cluster import wait_for_all

log = logging.getLogger(__name__)

LOSS = "loss"


class Checkpoints:
    """The checkpoints under `<workdir>/checkpoints`.

    Args:
      workdir: the run's folder.
      read_only: whether nothing is ever written or cleaned up.
    """

    def __init__(self, workdir: str, *, read_only: bool = False):
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        # A checkpoint without an evaluation has no loss, and is kept only while it is the newest.
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[LOSS], reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(2), best])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, create=not read_only, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=("state", "config"),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()},
            options=options,
        )

    def steps(self) -> list[int]:
        """The steps that can be restored, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state, config: Mapping, loss: float | None) -> None:
        """Starts saving; training goes on meanwhile. `loss` is the validation loss, None where it was not measured."""
        if step in self._manager.all_steps():
            return  # a request to stop can come right after the step's own checkpoint
        metrics = {LOSS: loss} if loss is not None and np.isfinite(loss) else None
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(dict(config)))
        self._manager.save(step, args=arguments, metrics=metrics, force=True)

    def restore(self, step: int, target):
        """The state of a step, laid out as the arrays or ShapeDtypeStructs of `target`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return self._manager.restore(step, args=arguments)["state"]

    def restore_newest(self, target) -> tuple[int, object] | None:
        """The newest step that can be read, and its state; None where there is no checkpoint.

        A damaged checkpoint is renamed, so that its step can be saved again, and said.

        Raises:
          InputError: there are checkpoints, but none can be read.
        """
        steps = self.steps()
        if not steps:
            return None
        step, state = self.first_readable(reversed(steps), lambda step: self.restore(step, target))
        # Only now: if none can be read, they stay as they are, and the next start says so again.
        self._set_aside([damaged for damaged in steps if damaged > step])
        return step, state

    def first_readable(self, steps: Iterable[int], restore: Callable) -> tuple[int, object]:
        """The first of the steps that `restore` can read, and what it gives; those that it cannot are said.

        Raises:
          InputError: none can be read.
        """
        tried = []
        for step in steps:
            try:
                return step, restore(step)
            except (ValueError, KeyError, OSError, TypeError) as error:
                reason = str(error).strip().splitlines()
                log.warning(
                    "checkpoint %d is damaged (%s); going back to the one before", step, reason[0] if reason else error
                )
                tried.append(step)
        raise InputError(
            f"no checkpoint in {self.folder} can be read (tried {tried}); move the folder away to start anew"
        )

    def _set_aside(self, steps):
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                (self.folder / str(step)).rename(self.folder / f"damaged-{step}")
        wait_for_all("set aside")
        self._manager.reload()

    def restore_as_saved(self, step: int) -> dict:
        """The state of a step as nested dicts of NumPy arrays, whatever devices it was saved from."""
        saved = self._manager.item_metadata(step)["state"]
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), saved)
        return jax.device_get(self.restore(step, target))

    def wait(self) -> None:
        """Waits until what was being saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and lets go."""
        self._manager.close()
