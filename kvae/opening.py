"""What is read of a run as it is opened: its config, and a checkpoint."""

import contextlib

from kvae import share
from kvae.buckets import check_address, check_reachable, errors_of_bucket, place
from kvae.errors import InputError
from kvae.training.checkpoint import Checkpoints, DamagedError
from kvae.training.config import checked_run
from kvae.training.workdir import config_of_checkpoints, config_of_run, upgraded

TRIES = 10
"""How often a run is read that takes away, as it trains, what is being read."""


def read_run(workdir: str, step: int | str | None) -> tuple[dict, int, dict]:
    """The config, the step and the state of a checkpoint.

    Args:
      workdir: the run's folder.
      step: of the checkpoint; None is the newest that can be read, "best" that of the lowest validation loss.

    Raises:
      InputError: there is no run, or no such checkpoint, or its bucket does not answer.
    """
    check_address("the run", workdir)
    check_reachable(workdir)
    with errors_of_bucket(workdir):
        for again in reversed(range(TRIES)):
            with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
                try:
                    return _read(workdir, checkpoints, step)
                except InputError:
                    # A run that is training may take away what is being read.
                    if not again or checkpoints.are_still_there():
                        raise


def _read(workdir: str, checkpoints: Checkpoints, step: int | str | None) -> tuple[dict, int, dict]:
    """The config, the step and the state of a checkpoint."""
    steps = checkpoints.steps()
    if not steps:
        config_of_run(workdir)  # says what is wrong with it, if anything
        if (place(workdir) / share.WEIGHTS).exists():
            raise InputError(f"{workdir} is a shared run; kvae.from_pretrained opens it")
        raise InputError(f"{workdir} has no checkpoint yet")
    config = config_of_checkpoints(workdir, checkpoints)
    if step == "best" and (step := checkpoints.best()) is None:
        raise InputError(f"{workdir} has no checkpoint with a validation loss yet; leave step out")
    if step is not None and step not in steps:
        raise InputError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    config = checked_run(upgraded(config), workdir)
    if step is None:
        return config, *checkpoints.first_readable(reversed(steps), checkpoints.variables)
    try:
        return config, step, checkpoints.variables(step)
    except DamagedError as error:
        others = ", ".join(str(other) for other in steps if other != step) or "no other"
        raise InputError(f"checkpoint {step} of {workdir} is damaged ({error}); it has {others}") from error
