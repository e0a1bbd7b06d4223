"""What is read of a run as it is opened: its config, and a checkpoint."""

import contextlib
import os
import pathlib
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from kvae.core.buckets import as_path, check_address, check_reachable, wrap_bucket_errors
from kvae.core.errors import InputError, check_local
from kvae.runs import share
from kvae.runs.run import Run, _hub
from kvae.training.config.sections import build_model, validate_run
from kvae.training.workdir.checkpoint import Checkpoints, DamagedError
from kvae.training.workdir.journal import logged_to
from kvae.training.workdir.mirror import mirrored
from kvae.training.workdir.run_config import check_place, config_of_checkpoints, read_config_json

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
    with wrap_bucket_errors(workdir):
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
        read_config_json(workdir)  # says what is wrong with it, if anything
        if (as_path(workdir) / share.WEIGHTS).exists():
            raise InputError(f"{workdir} is a shared run; kvae.from_pretrained opens it")
        raise InputError(f"{workdir} has no checkpoint yet")
    config = config_of_checkpoints(workdir, checkpoints)
    if step == "best" and (step := checkpoints.best()) is None:
        raise InputError(f"{workdir} has no checkpoint with a validation loss yet; leave step out")
    if step is not None and step not in steps:
        raise InputError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    config = validate_run(config, workdir)
    if step is None:
        return config, *checkpoints.first_readable(reversed(steps), checkpoints.variables)
    try:
        return config, step, checkpoints.variables(step)
    except DamagedError as error:
        others = ", ".join(str(other) for other in steps if other != step) or "no other"
        raise InputError(f"checkpoint {step} of {workdir} is damaged ({error}); it has {others}") from error


def load(workdir: str, step: int | str | None = None, replica: int = 0) -> Run:
    """Opens a run, on any machine, whatever devices trained it.

    Args:
      workdir: the run's folder, on a disk or in a bucket.
      step: of the checkpoint; by default the newest that can be read; "best" is that of the lowest validation loss.
      replica: which one, where several were trained at once.

    Raises:
      InputError: there is no run, checkpoint or replica of that name.
    """
    config, step, state = read_run(workdir, step)
    if not 0 <= replica < config["replicas"]:
        raise InputError(f"replica is {replica}; {workdir} has {config['replicas']}, from 0")
    variables = {"params": state["params"], **state["collections"]}
    variables = jax.tree.map(lambda leaf: leaf[replica], variables)
    return Run(str(workdir), config, step, build_model(config), variables, replica)


def from_pretrained(name: os.PathLike | str, **options) -> Run:
    """Opens a run that was shared with `Run.save_pretrained` or `Run.push_to_hub`.

    Args:
      name: a folder, or "user/name" of Hugging Face's hub, which needs `pip install -e '.[hub]'`.
      **options: of `huggingface_hub.snapshot_download`, such as revision, token and cache_dir.

    Raises:
      InputError: there is no such folder or repository, or its weights are damaged or of another model.
    """
    check_local("the shared run", name)
    folder = pathlib.Path(name).expanduser()
    if not folder.is_dir():
        folder = _hub().fetch(str(name), **options)
    config, step, replica, variables = share.read(folder)
    model = build_model(config)
    share.check_variables(model, variables, str(folder / share.WEIGHTS))
    return Run(str(folder), config, step, model, variables, replica)


def train(config: Mapping | ConfigDict, workdir: str) -> Run:
    """Trains the run of a folder as `python -m kvae.main` does, or goes on training it, and opens it.

    Args:
      config: such as `kvae.read_config("configs/photos_vqvae.py")` gives; what is left out takes its default.
      workdir: the run's folder. Interrupted, the run is saved, and the same call goes on.

    Raises:
      InputError: something that you can mend: a field, the data, the folder.
    """
    # Imported here: opening a run needs none of it.
    from kvae.training import train as story

    config = config.to_dict() if isinstance(config, ConfigDict) else config
    check_place(workdir)
    with mirrored(workdir) as mirror, logged_to(mirror.folder):
        story.train(config, workdir, mirror=mirror)
    return load(workdir)
