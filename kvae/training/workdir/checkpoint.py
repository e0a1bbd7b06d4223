"""Checkpoints of a run: orbax, asynchronous, the newest and the best kept, and each leaf with a digest."""

import contextlib
import gc
import itertools
import logging
import operator
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers, handlers

from kvae.core.buckets import as_path, is_bucket, reason_of, rename_folder, wrap_bucket_errors
from kvae.core.digests import digest_of_json, digests
from kvae.core.errors import InputError, wrap_write_errors
from kvae.training.best import best_step
from kvae.training.parallel.cluster import wait_for_all
from kvae.training.parallel.peers import agree

log = logging.getLogger(__name__)

LOSS, CONFIG = "loss", "config"

SECONDS_OF_STRAGGLERS = 0.2
"""How long threads that read along may still complain after the first error."""


class DamagedError(Exception):
    """A checkpoint is not what was saved."""


class _Manager(ocp.CheckpointManager):
    """orbax's manager, to which a damaged loss is none: it reads the losses of all steps before anything else."""

    def metrics(self, step: int) -> dict | None:
        try:
            found = super().metrics(step)
            expected = self.json(step, "digests").get(LOSS) if found else None
            return found if expected in (None, digest_of_json(found)) else None
        except Exception as error:
            if is_bucket(self.directory) and reason_of(error):
                raise  # what does not answer is not damaged, and may be the best
            return None

    def json(self, step: int, item: str) -> dict:
        """An item that is JSON; empty where the checkpoint has none."""
        folder = self.directory / str(step) / item
        return ocp.JsonCheckpointHandler().restore(folder) if folder.exists() else {}


class Checkpoints:
    """The checkpoints under `<workdir>/checkpoints`.

    orbax restores a flipped bit without a word. So every leaf is saved with a digest, and compared with it.

    Args:
      workdir: the run's folder.
      read_only: whether nothing is ever written or cleaned up.
    """

    def __init__(self, workdir: str, *, read_only: bool = False):
        self.folder = as_path(workdir if is_bucket(workdir) else pathlib.Path(workdir).absolute()) / "checkpoints"
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is no folder; it must be one, of checkpoints, or not be there")
        loss = operator.itemgetter(LOSS)
        # A checkpoint without an evaluation has no loss, and is kept only while it is the newest.
        best = checkpoint_managers.BestN(get_metric_fn=loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(2), best]),
            best_fn=loss,  # without it the losses are not saved, and a run that goes on would forget its best
            best_mode="min",
            create=not read_only,
            enable_async_checkpointing=True,
        )
        registry = handlers.DefaultCheckpointHandlerRegistry()
        items = {"state": (ocp.PyTreeCheckpointHandler(), ocp.args.PyTreeSave, ocp.args.PyTreeRestore)}
        for name in (CONFIG, "digests"):
            items[name] = (ocp.JsonCheckpointHandler(), ocp.args.JsonSave, ocp.args.JsonRestore)
        for name, (handler, *kinds) in items.items():
            for kind in kinds:
                registry.add(name, kind, handler)
        self._silenced = contextlib.ExitStack()
        self._silenced.enter_context(_silence())
        with wrap_write_errors(workdir), wrap_bucket_errors(workdir):
            self._manager = _Manager(self.folder, options=options, handler_registry=registry)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def are_still_there(self) -> bool:
        """Whether the steps on disk are those that were found at first."""
        before = self.steps()
        self._manager.reload()
        return before == self.steps()

    def best(self) -> int | None:
        """Returns the best of the steps that have a checkpoint, by `kvae.training.best`; None if none has a loss."""
        found = {step: self._manager.metrics(step) for step in self.steps()}
        return best_step({step: metrics[LOSS] for step, metrics in found.items() if metrics})

    def save(self, step: int, state, config: Mapping, loss: float | None) -> None:
        """Starts saving; training goes on meanwhile. `loss` is the validation loss, None where it was not measured."""
        if step in self._manager.all_steps():
            return  # a request to stop can come right after the step's own checkpoint
        metrics = {LOSS: loss} if loss is not None and np.isfinite(loss) else None
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            config=ocp.args.JsonSave(dict(config)),
            digests=ocp.args.JsonSave(
                digests(state) | {CONFIG: digest_of_json(config)} | ({LOSS: digest_of_json(metrics)} if metrics else {})
            ),
        )
        with self._wrap_save_errors():
            self._manager.save(step, args=arguments, metrics=metrics, force=True)

    def restore(self, step: int, target):
        """The state of a step, laid out as the arrays or ShapeDtypeStructs of `target`.

        Raises:
          DamagedError: it cannot be read, or is not what was saved.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        return self._restore(step, ocp.args.PyTreeRestore(abstract, restore_args=arguments))

    def restore_newest(self, target) -> tuple[int, object] | None:
        """The newest step that can be read, and its state; None where there is no checkpoint.

        A damaged checkpoint is renamed, so that its step can be saved again.

        Raises:
          InputError: there are checkpoints, but none can be read.
        """
        steps = self.steps()
        if not steps:
            return None
        step, state = self.first_readable(reversed(steps), lambda step: self.restore(step, target))
        agree("checkpoint", lambda: {"the newest checkpoint that can be read": step})
        # Only now: if none can be read, they stay as they are, and the next start says so again.
        self._set_aside([damaged for damaged in steps if damaged > step])
        return step, state

    def first_readable(self, steps: Iterable[int], restore: Callable) -> tuple[int, object]:
        """The first step that `restore` can read, and what it gives; logs a warning for each that it cannot.

        Raises:
          InputError: none can be read.
        """
        tried = []
        for step in steps:
            try:
                return step, restore(step)
            except DamagedError as error:
                reason = str(error)
            time.sleep(SECONDS_OF_STRAGGLERS)
            with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
                gc.collect()  # what failed beside the first error complains when it is thrown away
            if not (self.folder / str(step)).exists():
                continue  # a run that is training has taken it away
            log.warning("checkpoint %d is damaged (%s); the one before is taken", step, reason)
            tried.append(step)
        raise InputError(f"no checkpoint in {self.folder} can be read (tried {tried}); a backup of it would help")

    def variables(self, step: int) -> dict:
        """`params` and `collections` of a step, and `step` itself: see `restore_as_saved`."""
        # The moments of the optimiser are two thirds of a state.
        return self.restore_as_saved(step, ("params", "collections", "step"))

    def restore_as_saved(self, step: int, parts: Collection[str] | None = None) -> dict:
        """A step's state, or parts of it, as nested dicts of NumPy arrays, whatever devices saved it.

        Raises:
          DamagedError: it cannot be read, or is not what was saved.
        """
        with self._told_as_damage():
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

    def _restore(self, step, arguments, parts=None):
        with self._told_as_damage():
            found = self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
            saved = self._manager.json(step, "digests")
            saved = {name: digest for name, digest in saved.items() if name not in (CONFIG, LOSS)}
        if parts is not None:
            saved = {name: digest for name, digest in saved.items() if name.partition("/")[0] in parts}
        differ = sorted(dict(digests(found).items() ^ saved.items())) if saved else []
        if differ:
            more = f" and {len(differ) - 1} more" if len(differ) > 1 else ""
            raise DamagedError(f"{differ[0]}{more}: not the digest that was saved")
        return found

    def config(self) -> dict | None:
        """The config of the newest checkpoint that has one with its digest; None where there is none."""
        for step in reversed(self.steps()):
            with contextlib.suppress(DamagedError), self._told_as_damage():
                found = self._manager.json(step, CONFIG)
                if self._manager.json(step, "digests").get(CONFIG) == digest_of_json(found):
                    return found
        return None

    def _set_aside(self, steps):
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                names = itertools.chain([f"damaged-{step}"], (f"damaged-{step}-{n}" for n in itertools.count(2)))
                free = next(name for name in names if not (self.folder / name).exists())
                rename_folder(self.folder / str(step), self.folder / free)
        wait_for_all("set aside")
        self._manager.reload()

    def wait(self) -> None:
        """Waits until what was being saved is on disk."""
        with self._wrap_save_errors():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _wrap_save_errors(self):
        """Tells an error of writing, and whatever orbax raises where the folder has gone, in one line."""
        try:
            with wrap_write_errors(self.folder.parent), wrap_bucket_errors(self.folder.parent):
                yield
        except InputError:
            raise
        except Exception as error:
            if (self.folder.parent / "config.json").exists():
                raise
            raise InputError(f"{self.folder.parent} was deleted while the run trained; it ends here") from error

    @contextlib.contextmanager
    def _told_as_damage(self) -> Iterator[None]:
        """Whatever orbax raises as it reads is `DamagedError`, in one line; but for a bucket that does not answer."""
        try:
            with wrap_bucket_errors(self.folder.parent):
                yield
        except InputError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines()
            reason = " ".join((lines[0] if lines else type(error).__name__).split())[:200]
            raise DamagedError(f"it cannot be read: {reason}") from error

    def close(self) -> None:
        """Waits for the last save and lets go."""
        with self._silenced, self._wrap_save_errors():
            self._manager.close()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps what orbax logs, and its threads in C++ print, from the terminal: kvae says what a user should know."""
    loggers, hook = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)

    def of_others(unraisable):
        # A read that is given up after another has failed complains as it is thrown away.
        code = getattr(unraisable.object, "cr_code", None)
        given_up = code is not None and "orbax" in code.co_filename
        if not given_up and str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = of_others
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        sys.unraisablehook = hook
