"""Checkpoints of a run. Orbax writes them in the background, and every array is saved with a checksum."""

import contextlib
import gc
import itertools
import logging
import pathlib
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from kvae.core.buckets import as_path, is_bucket, rename_folder, wrap_bucket_errors
from kvae.core.digests import digest_of_json, digests
from kvae.core.errors import InputError, access_error, first_line, one_line, wrap_write_errors
from kvae.training.best import Losses, mean_over_replicas
from kvae.training.parallel.cluster import wait_for_all
from kvae.training.parallel.peers import agree
from kvae.training.workdir.journal import as_json
from kvae.training.workdir.orbax_manager import CONFIG, DIGESTS, LOSS_ITEM, best_checkpoint, make_manager, silence_orbax

log = logging.getLogger(__name__)

STRAGGLER_SECONDS = 0.2
"""Time after a failed read in which Orbax's other threads may still print errors."""
STILL_WRITING: list[contextlib.ExitStack] = []
"""Contexts that silence Orbax after a failed save, because its other writes end later and print errors."""


class CorruptedError(Exception):
    """Raised if a checkpoint cannot be read, or differs from what was saved."""


class Checkpoints:
    """The checkpoints in `<workdir>/checkpoints`.

    Orbax does not notice flipped bits. Each array is therefore saved with a digest, and checked against it when it is
    restored. A corrupted checkpoint is never loaded.

    Args:
      workdir: The run's folder, on a disk or in a bucket.
      read_only: True if nothing may be written or cleaned up.

    Raises:
      InputError: `checkpoints` is not a folder, cannot be created, or its bucket does not answer.
    """

    def __init__(self, workdir: str, *, read_only: bool = False):
        self.folder = as_path(workdir if is_bucket(workdir) else pathlib.Path(workdir).absolute()) / "checkpoints"
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is not a folder; delete it, or choose another --workdir")
        self._silenced = contextlib.ExitStack()
        self._silenced.enter_context(silence_orbax())
        with wrap_write_errors(workdir), wrap_bucket_errors(workdir):
            self._manager = make_manager(self.folder, read_only=read_only)

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())

    def are_unchanged(self) -> bool:
        """True if the folder has the same steps as when it was last read; a run that is training replaces them."""
        before = self.steps()
        self._manager.reload()
        return before == self.steps()

    def best(self) -> int | None:
        """Returns the best step that has a checkpoint (see `kvae.training.best`); None if no checkpoint has a loss."""
        return best_checkpoint({step: self._manager.metrics(step) for step in self.steps()})

    def save(self, step: int, state: Any, config: Mapping[str, Any], loss: Losses) -> None:
        """Saves a checkpoint in the background, unless the step already has one.

        Args:
          step: The number of training steps done.
          state: A tree of arrays.
          config: The run's validated config.
          loss: The validation loss, one per replica if there are several; None if it was not measured.

        Raises:
          InputError: The folder cannot be written, or was deleted.
        """
        if step in self._manager.all_steps():
            return  # a stop signal may arrive right after a scheduled checkpoint
        metrics = {LOSS_ITEM: as_json(loss)} if mean_over_replicas(loss) is not None else None
        digest_of_loss = {LOSS_ITEM: digest_of_json(metrics)} if metrics else {}
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            config=ocp.args.JsonSave(dict(config)),
            digests=ocp.args.JsonSave(digests(state) | {CONFIG: digest_of_json(config)} | digest_of_loss),
        )
        with self._wrap_save_errors():
            self._manager.save(step, args=arguments, metrics=metrics, force=True)

    def restore(self, step: int, target: Any) -> Any:
        """Restores the state of a step.

        Args:
          step: One of `steps()`.
          target: A tree of arrays or ShapeDtypeStructs with the shapes, dtypes and shardings of the result.

        Raises:
          CorruptedError: The checkpoint cannot be read, or differs from what was saved.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        return self._restore(step, ocp.args.PyTreeRestore(abstract, restore_args=arguments))

    def restore_newest(self, target: Any) -> tuple[int, Any] | None:
        """Restores the newest intact checkpoint, and renames corrupted ones so that their steps can be saved again.

        Args:
          target: As for `restore`.

        Returns:
          The step and its state; None if there is no checkpoint.

        Raises:
          InputError: There are checkpoints, but all are corrupted; none is renamed.
        """
        steps = self.steps()
        if not steps:
            return None
        step, state = self.newest_intact(reversed(steps), lambda step: self.restore(step, target))
        agree("checkpoint", lambda: {"the newest intact checkpoint": step})
        self._set_aside([corrupted for corrupted in steps if corrupted > step])
        return step, state

    def newest_intact(self, steps: Iterable[int], restore: Callable[[int], Any]) -> tuple[int, Any]:
        """Tries steps in turn, and logs a warning for each corrupted one.

        Args:
          steps: The steps to try, from new to old.
          restore: Restores a step, or raises CorruptedError.

        Returns:
          The first step that can be restored, and the result of `restore`.

        Raises:
          InputError: None of the steps can be restored.
        """
        corrupted = []
        for step in steps:
            try:
                return step, restore(step)
            except CorruptedError as error:
                reason = str(error)
            time.sleep(STRAGGLER_SECONDS)
            with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
                gc.collect()  # frees Orbax's failed coroutines here, where their warnings are ignored
            if not (self.folder / str(step)).exists():
                continue  # a run that is training deleted it
            log.warning("checkpoint %d is corrupted (%s); falling back to the previous one", step, reason)
            corrupted.append(step)
        raise InputError(f"no checkpoint in {self.folder} can be read (tried {corrupted}); restore one from a backup")

    def variables(self, step: int) -> dict[str, Any]:
        """Restores params, collections and step, but not the optimiser state (about two thirds of a checkpoint)."""
        return self.restore_as_saved(step, ("params", "collections", "step"))

    def restore_as_saved(self, step: int, parts: Collection[str] | None = None) -> dict[str, Any]:
        """Restores a step's state on the host, with the shapes and dtypes that were saved.

        Args:
          step: One of `steps()`.
          parts: The top-level names to restore; all by default.

        Returns:
          Nested dicts of NumPy arrays.

        Raises:
          CorruptedError: The checkpoint cannot be read, or differs from what was saved.
        """
        with self._wrap_orbax_errors():
            saved = self._manager.item_metadata(step)["state"]
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            tree = getattr(saved, "tree", saved)
            target = {
                name: jax.tree.map(
                    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree[name]
                )
                for name in parts or tree
            }
        arguments = ocp.checkpoint_utils.construct_restore_args(target)
        arguments = ocp.args.PyTreeRestore(target, restore_args=arguments, partial_restore=True)
        return jax.device_get(self._restore(step, arguments, parts))

    def _restore(self, step: int, arguments: ocp.args.PyTreeRestore, parts: Collection[str] | None = None) -> Any:
        with self._wrap_orbax_errors():
            state = self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
            restored, saved = digests(state), self._manager.json(step, DIGESTS)
            saved = {path: digest for path, digest in saved.items() if path not in (CONFIG, LOSS_ITEM)}
        if parts is not None:
            saved = {path: digest for path, digest in saved.items() if path.partition("/")[0] in parts}
        changed = sorted(dict(restored.items() ^ saved.items())) if saved else []
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise CorruptedError(f"{changed[0]}{more}: the digest does not match the saved digest")
        return state

    def config(self) -> dict[str, Any] | None:
        """Reads the newest config that matches its digest from the checkpoints; None if there is none."""
        for step in reversed(self.steps()):
            with contextlib.suppress(CorruptedError), self._wrap_orbax_errors():
                config = self._manager.json(step, CONFIG)
                if self._manager.json(step, DIGESTS).get(CONFIG) == digest_of_json(config):
                    return config
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Renames corrupted checkpoints to `corrupted-<step>`."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                names = itertools.chain([f"corrupted-{step}"], (f"corrupted-{step}-{n}" for n in itertools.count(2)))
                free = next(name for name in names if not (self.folder / name).exists())
                rename_folder(self.folder / str(step), self.folder / free)
        wait_for_all("set aside")
        self._manager.reload()

    def wait(self) -> None:
        """Blocks until the last checkpoint is stored.

        Raises:
          InputError: As for `save`.
        """
        with self._wrap_save_errors():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _wrap_save_errors(self) -> Iterator[None]:
        """Turns write errors, and any exception of Orbax if the folder was deleted, into a one-line InputError."""
        try:
            with wrap_write_errors(self.folder.parent), wrap_bucket_errors(self.folder.parent):
                yield
        except InputError:
            STILL_WRITING.append(self._silenced.pop_all())
            raise
        except Exception as error:
            if (self.folder.parent / "config.json").exists():
                raise
            raise InputError(f"{self.folder.parent} was deleted during training; the run stops") from error

    @contextlib.contextmanager
    def _wrap_orbax_errors(self) -> Iterator[None]:
        """Turns any exception of Orbax while reading into CorruptedError, unless the checkpoint may be intact.

        Raises:
          InputError: The bucket does not answer, or memory, access or open files are missing.
        """
        try:
            with wrap_bucket_errors(self.folder.parent):
                yield
        except InputError:
            raise
        except Exception as error:
            if reason := access_error(error):
                raise InputError(
                    f"{self.folder} cannot be read: {reason}; no checkpoint is changed; fix this and run the same "
                    "command again"
                ) from error
            raise CorruptedError(f"it cannot be read: {one_line(first_line(error))[:200]}") from error

    def close(self) -> None:
        """Waits for the last checkpoint to be stored, and releases Orbax's threads."""
        with self._silenced, self._wrap_save_errors():
            self._manager.close()
