"""Opens runs: `kvae.load` opens a run folder, `kvae.from_pretrained` a shared run, and `kvae.train` a new run."""

import contextlib
import itertools
import os
import pathlib
import re
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kvae.core.buckets import as_path, check_reachable, wrap_bucket_errors
from kvae.core.errors import InputError, short_repr
from kvae.core.files import user_address, user_path
from kvae.core.program import STOPPED
from kvae.runs import share
from kvae.runs.run import Run
from kvae.training.config.sections import build_model, validate_run
from kvae.training.parallel.devices import select_replica
from kvae.training.workdir.checkpoint import Checkpoints, CorruptedError
from kvae.training.workdir.run_config import config_of_checkpoints, open_address, read_config_json

if TYPE_CHECKING:
    from ml_collections import ConfigDict

HUB_NAME = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")
"""Matches the name of a repository on the Hugging Face Hub, "user/name"."""

HUB_PAGE = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)|hf:/)/(?:models/)?([\w.-]+/[\w.-]+)")
"""Matches the URL of a repository on the Hugging Face Hub, or its hf:// address; group 1 is its name."""

ATTEMPTS = 10
"""Maximum number of attempts to read a run while its training replaces checkpoints."""


def read_run(workdir: str, step: int | str | None, replica: int) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """Reads the config and one checkpoint of a run.

    Args:
      workdir: The run's folder, local or in a bucket.
      step: Step of the checkpoint; "best" is the one with the lowest validation loss, None the newest intact one.
      replica: Index of a replica.

    Returns:
      The config, the step, and the variables of the replica as nested dicts of NumPy arrays.

    Raises:
      InputError: The run, the checkpoint or the replica does not exist, or the bucket does not respond.
    """
    if isinstance(replica, bool) or not isinstance(replica, (int, np.integer)):
        raise InputError(f"replica is {short_repr(replica)}; it must be an integer")
    check_reachable(workdir)
    with wrap_bucket_errors(workdir):
        for attempt in itertools.count(1):
            with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
                try:
                    return _read_checkpoint(workdir, checkpoints, step, replica)
                except InputError:
                    if attempt == ATTEMPTS or checkpoints.are_unchanged():
                        raise


def _read_checkpoint(
    workdir: str, checkpoints: Checkpoints, step: int | str | None, replica: int
) -> tuple[dict[str, Any], int, dict[str, Any]]:
    steps = checkpoints.steps()
    if not steps:
        read_config_json(workdir)  # raises if the folder is not a run
        if (as_path(workdir) / share.WEIGHTS).exists():
            raise InputError(f"{workdir} is a shared run; open it with kvae.from_pretrained")
        raise InputError(f"{workdir} has no checkpoint yet")
    config = config_of_checkpoints(workdir, checkpoints)
    if step == "best" and (step := checkpoints.best()) is None:
        raise InputError(f"{workdir} has no checkpoint with a validation loss yet; omit step to open the newest")
    if step is not None and step not in steps:
        raise InputError(f"{workdir} has no checkpoint at step {step}; it has steps {', '.join(map(str, steps))}")
    config = validate_run(config, workdir)
    if not 0 <= replica < config["replicas"]:
        raise InputError(f"replica is {replica}; it must be from 0 to {config['replicas'] - 1} for {workdir}")
    try:
        if step is None:
            step, state = checkpoints.newest_intact(reversed(steps), checkpoints.variables)
        else:
            state = checkpoints.variables(step)
    except CorruptedError as error:
        others = ", ".join(str(other) for other in steps if other != step) or "none"
        raise InputError(
            f"checkpoint {step} of {workdir} is corrupted ({error}); other checkpoints: {others}"
        ) from error
    return config, step, select_replica({"params": state["params"], **state["collections"]}, replica)


def load(workdir: str, step: int | str | None = None, replica: int = 0) -> Run:
    """Opens a run, on any machine and any devices. See `Run` for an example.

    Args:
      workdir: The run's folder, local or in a bucket (gs://bucket/run).
      step: Step of the checkpoint. By default the newest intact one; "best" is the one with the lowest validation loss.
        Replicas share their checkpoints, so this is the lowest mean over replicas, whatever `replica` is; see
        `kvae.training.best`.
      replica: Index of the replica, if several seeds were trained at once.

    Raises:
      InputError: The run, the checkpoint or the replica does not exist, or the checkpoint belongs to another model.
    """
    workdir = user_address("the run", workdir)
    config, step, variables = read_run(workdir, step, replica)
    model = build_model(config)
    share.check_variables(model, variables, f"checkpoint {step} of {workdir}")
    return Run(workdir, config, step, model, variables, int(replica))


def open_run(folder: str, step: int | str | None = None, replica: int = 0) -> Run:
    """Opens a run for a program, from the folder of a run or of a shared run.

    Args:
      folder: The folder, local or in a bucket.
      step, replica: See `load`; a shared run has one step, which is also its "best".

    Raises:
      InputError: The folder is neither, or the checkpoint or the replica does not exist.
    """
    check_reachable(folder)
    with wrap_bucket_errors(folder):
        is_shared = (as_path(folder) / share.WEIGHTS).exists()
    if is_shared and (step not in (None, "best") or replica):
        raise InputError(f"--step and --replica cannot be used with {folder}: a shared run has one set of weights")
    return from_pretrained(folder) if is_shared else load(folder, step, replica)


def from_pretrained(name: os.PathLike | str, **options: Any) -> Run:
    """Opens a run that was shared with `Run.save_pretrained` or `Run.push_to_hub`.

    Example:
      >>> import kvae
      >>> kvae.load("runs/smoke").save_pretrained("shared")
      >>> kvae.from_pretrained("shared")
      Run('shared', step=4, model=VQVAE)

    Args:
      name: A folder, or "user/name" on the Hugging Face Hub. The Hub needs `pip install -e '.[hub]'`.
      **options: Passed to `huggingface_hub.snapshot_download`, such as revision, token and cache_dir.

    Raises:
      InputError: The folder or repository does not exist, or its weights are corrupted or belong to another model.
    """
    if isinstance(name, str) and (page := HUB_PAGE.match(name)):
        raise InputError(f"name is {short_repr(name, 200)}; pass the name of the repository, {page[1]!r}")
    folder = user_path("name", name)
    if not folder.is_dir():
        folder = _download(name, folder, options)
    config, step, replica, variables = share.read_shared(folder)
    model = build_model(config)
    share.check_variables(model, variables, str(folder / share.WEIGHTS))
    return Run(str(folder), config, step, model, variables, replica)


def _download(name: os.PathLike | str, folder: pathlib.Path, options: Mapping[str, Any]) -> pathlib.Path:
    """Downloads a shared run from the Hugging Face Hub and returns its local folder."""
    if folder.exists():
        raise InputError(f"{folder} is a file; pass the folder that contains {share.WEIGHTS}")
    if not isinstance(name, str) or not HUB_NAME.fullmatch(name):
        raise InputError(f"{folder} does not exist; pass a folder, or user/name for a run on the Hugging Face Hub")
    try:
        from kvae.runs import hub
    except InputError as error:
        raise InputError(f"{name} is not a local folder; to download it from the Hugging Face Hub: {error}") from error
    return hub.fetch(name, **options)


def train(config: "Mapping[str, Any] | ConfigDict", workdir: str) -> Run:
    """Trains or resumes a run as `python -m kvae.main` does, then opens it.

    On Ctrl-C or SIGTERM the run saves a checkpoint and then raises the signal again. Ctrl-C therefore raises
    KeyboardInterrupt, which also ends a loop over seeds. The same call resumes the run.

    Args:
      config: A config such as `kvae.read_config("configs/photos_vqvae.py")`. Missing fields take their
        defaults.
      workdir: The run's folder, local or in a bucket.

    Raises:
      InputError: A field is invalid, or the data set or the folder cannot be used.
      KeyboardInterrupt: The run was interrupted; its checkpoint is saved.
      SystemExit: Another process of the run was asked to stop; the checkpoint is saved.
    """
    # Imported here because opening a run does not need them.
    from kvae.training import train as training
    from kvae.training.parallel.cluster import StopSignal
    from kvae.training.workdir.logs import logged_to
    from kvae.training.workdir.mirror import mirrored

    if not isinstance(config, Mapping):
        config = config.to_dict()
    workdir = open_address(workdir)
    stop = StopSignal()
    with mirrored(workdir) as mirror, logged_to(mirror.folder):
        last_step = training.train(config, workdir, mirror=mirror, stop=stop)
    if stop.received is not None:
        signal.raise_signal(stop.received)
    elif last_step < config["steps"]:
        raise SystemExit(STOPPED)
    return load(workdir)
