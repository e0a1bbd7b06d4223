"""Encodes the data set of a run for a second-stage model that names the run instead of a folder of tokens."""

import pathlib
from typing import Any

from kvae.core.errors import InputError
from kvae.core.files import user_path
from kvae.data.token_manifest import MANIFEST, UNFINISHED, find_manifest, read_manifest
from kvae.runs import opening
from kvae.runs.run import Run
from kvae.tokenize.encode import write_tokens
from kvae.tokenize.source import dataset_source

BATCH_SIZE, SHARD_SIZE = 64, 10_000
"""The defaults of `python -m kvae.tokenize`."""


def with_tokens(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config whose data set `tokens` names a folder of tokens.

    If `dataset.path` is the folder of a run, the run's data set is encoded into RUN/tokens_STEP, unless that was done
    before.

    Args:
      config: The config of a run on the data set `tokens`, as `kvae.main.parse` returns it.

    Raises:
      InputError: The run cannot be opened or does not encode images.
    """
    section = config["dataset"]
    if not section.get("path"):
        return config
    root = user_path("dataset.path", section["path"])
    if not (root / "config.json").exists() or any(find_manifest(root, name) for name in (MANIFEST, UNFINISHED)):
        return config
    run = opening.load(str(root))
    folder = root / f"tokens_{run.step}"
    write_tokens(run, dataset_source(run, None, []), str(folder), "array_record", BATCH_SIZE, SHARD_SIZE)
    return {**config, "dataset": {**section, "path": str(folder)}}


def tokenizer_of(prior: Run) -> str:
    """Returns the folder of the run that encoded the tokens of a prior.

    Raises:
      InputError: The tokens are not on this machine.
    """
    path = pathlib.Path(prior.config["dataset"].get("path") or "")
    if not find_manifest(path, MANIFEST):
        raise InputError("--tokenizer is missing, and the tokens of the prior are not on this machine; name the run")
    return read_manifest(path)["run"]
