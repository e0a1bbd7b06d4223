"""Opens runs: `kvae.load` a run's folder, `kvae.from_pretrained` a shared one; `kvae.train` trains and opens one."""

import contextlib
import itertools
import os
import pathlib
import re
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from kvae.core.buckets import as_path, check_reachable, wrap_bucket_errors
from kvae.core.errors import InputError, short_repr
from kvae.core.files import user_address, user_path
from kvae.core.program import STOPPED
from kvae.runs import share
from kvae.runs.run import Run
from kvae.training.config.sections import build_model, validate_run
from kvae.training.workdir.checkpoint import Checkpoints, CorruptedError
from kvae.training.workdir.run_config import config_of_checkpoints, open_address, read_config_json

if TYPE_CHECKING:
    from ml_collections import ConfigDict

HUB_NAME = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")
"""A repository on the Hugging Face Hub."""

HUB_PAGE = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)|hf:/)/(?:models/)?([\w.-]+/[\w.-]+)")
"""The address of a repository's page, or of the repository in fsspec."""

ATTEMPTS = 10
"""Attempts at reading a run whose training deletes the checkpoint being read."""


def read_run(workdir: str, step: int | str | None) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """Reads the config and one checkpoint of a run.

    Args:
      workdir: The run's folder, local or in a bucket.
      step: Step of the checkpoint; "best" is the one with the lowest validation loss, None the newest intact one.

    Returns:
      The config, the step, and the state as nested dicts of NumPy arrays.

    Raises:
      InputError: There is no run or no such checkpoint, or the bucket does not answer.
    """
    check_reachable(workdir)
    with wrap_bucket_errors(workdir):
        for attempt in itertools.count(1):
            with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
                try:
                    return _read_checkpoint(workdir, checkpoints, step)
                except InputError:
                    if attempt == ATTEMPTS or checkpoints.are_unchanged():
                        raise


def _read_checkpoint(
    workdir: str, checkpoints: Checkpoints, step: int | str | None
) -> tuple[dict[str, Any], int, dict[str, Any]]:
    steps = checkpoints.steps()
    if not steps:
        read_config_json(workdir)  # raises if the folder is not a run
        if (as_path(workdir) / share.WEIGHTS).exists():
            raise InputError(f"{workdir} is a shared run; open it with kvae.from_pretrained")
        raise InputError(f"{workdir} has no checkpoint yet")
    config = config_of_checkpoints(workdir, checkpoints)
    if step == "best" and (step := checkpoints.best()) is None:
        raise InputError(f"{workdir} has no checkpoint with a validation loss yet; leave step out")
    if step is not None and step not in steps:
        raise InputError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    config = validate_run(config, workdir)
    if step is None:
        return config, *checkpoints.newest_intact(reversed(steps), checkpoints.variables)
    try:
        return config, step, checkpoints.variables(step)
    except CorruptedError as error:
        others = ", ".join(str(other) for other in steps if other != step) or "no other"
        raise InputError(f"checkpoint {step} of {workdir} is corrupted ({error}); the run has {others}") from error


def load(workdir: str, step: int | str | None = None, replica: int = 0) -> Run:
    """Opens a run on any machine, whichever devices trained it. `Run` has an example.

    Args:
      workdir: The run's folder, local or in a bucket (gs://bucket/run).
      step: Step of the checkpoint. By default the newest intact one; "best" is the one with the lowest validation loss.
      replica: Number of the replica, if several seeds were trained at once.

    Raises:
      InputError: The run, the checkpoint or the replica does not exist.
    """
    workdir = user_address("the run", workdir)
    config, step, state = read_run(workdir, step)
    if not 0 <= replica < config["replicas"]:
        raise InputError(f"replica is {replica}; {workdir} has {config['replicas']}, numbered from 0")
    variables = {"params": state["params"], **state["collections"]}
    variables = jax.tree.map(lambda leaf: leaf[replica], variables)
    return Run(workdir, config, step, build_model(config), variables, replica)


def from_pretrained(name: os.PathLike | str, **options: Any) -> Run:
    """Opens a run that was shared with `Run.save_pretrained` or `Run.push_to_hub`.

    Example:
      >>> import kvae
      >>> kvae.load("runs/smoke").save_pretrained("shared")
      >>> kvae.from_pretrained("shared")
      Run('shared', step=4, model=VQVAE)

    Args:
      name: A folder, or "user/name" on the Hugging Face Hub, which needs `pip install -e '.[hub]'`.
      **options: For `huggingface_hub.snapshot_download`, such as revision, token and cache_dir.

    Raises:
      InputError: There is no such folder or repository, or its weights are corrupted or belong to another model.
    """
    if isinstance(name, str) and (page := HUB_PAGE.match(name)):
        raise InputError(f"the shared run is {short_repr(name, 200)}; pass its name, {page[1]!r}")
    folder = user_path("the shared run", name)
    if not folder.is_dir():
        folder = _fetched(name, folder, options)
    config, step, replica, variables = share.read_shared(folder)
    model = build_model(config)
    share.check_variables(model, variables, str(folder / share.WEIGHTS))
    return Run(str(folder), config, step, model, variables, replica)


def _fetched(name: os.PathLike | str, folder: pathlib.Path, options: Mapping[str, Any]) -> pathlib.Path:
    if folder.exists():
        raise InputError(f"the shared run is {folder}, a file; pass the folder with {share.WEIGHTS}")
    if not isinstance(name, str) or not HUB_NAME.fullmatch(name):
        raise InputError(f"{folder} does not exist; pass a folder, or user/name for a run on the Hugging Face Hub")
    try:
        from kvae.runs import hub
    except InputError as error:
        raise InputError(f"there is no folder {name}; to look for it on the Hugging Face Hub: {error}") from error
    return hub.fetch(name, **options)


def train(config: "Mapping[str, Any] | ConfigDict", workdir: str) -> Run:
    """Trains a run as `python -m kvae.main` does, or resumes it, and opens it.

    On Ctrl-C or SIGTERM the run saves a checkpoint, then the signal takes its usual course: Ctrl-C raises
    KeyboardInterrupt, so that a loop over seeds ends too. The same call resumes the run.

    Args:
      config: A config such as `kvae.read_config("configs/photos_vqvae.py")`. Fields that are missing have their
        defaults.
      workdir: The run's folder, local or in a bucket.

    Raises:
      InputError: A field, the data set or the folder does not fit.
      KeyboardInterrupt: The run was interrupted; its checkpoint is saved.
      SystemExit: Another process of the run was asked to stop; the checkpoint is saved.
    """
    # Opening a run needs none of these.
    from kvae.training import train as story
    from kvae.training.parallel.cluster import StopSignal
    from kvae.training.workdir.journal import logged_to
    from kvae.training.workdir.mirror import mirrored

    if not isinstance(config, Mapping):
        config = config.to_dict()
    workdir = open_address(workdir)
    stop = StopSignal()
    with mirrored(workdir) as mirror, logged_to(mirror.folder):
        reached = story.train(config, workdir, mirror=mirror, stop=stop)
    if stop.received is not None:
        signal.raise_signal(stop.received)
    elif reached < config["steps"]:
        raise SystemExit(STOPPED)
    return load(workdir)
