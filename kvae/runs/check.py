"""Verifies run folders (checkpoints, config.json, metrics.jsonl) and token folders.

A run must not be training while it is checked.
"""

import contextlib
from collections.abc import Iterable, Iterator

from kvae.core.buckets import as_path, is_bucket, wrap_bucket_errors
from kvae.core.errors import InputError
from kvae.data.token_manifest import MANIFEST, find_manifest
from kvae.data.token_manifest import findings as token_findings
from kvae.runs.seeds import run_folders
from kvae.training.workdir.checkpoint import Checkpoints, CorruptedError
from kvae.training.workdir.journal import rows_in
from kvae.training.workdir.metrics_file import ROWS
from kvae.training.workdir.run_config import differences, read_config_json


def findings(workdir: str) -> Iterator[tuple[str, str]]:
    """Yields (part, problem) for each part of a run; the problem is an empty string if the part is intact."""
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        if not checkpoints.steps():
            yield "checkpoints", "none found"
        for step in checkpoints.steps():
            problem = ""
            try:
                checkpoints.restore_as_saved(step)
            except CorruptedError as error:
                problem = f"corrupted ({error})"
            yield f"checkpoint {step}", problem
        saved = checkpoints.config()
    yield "config.json", _config_problem(workdir, saved)
    yield ROWS, _rows_problem(workdir, saved)


def _config_problem(workdir: str, saved: dict | None) -> str:
    """Returns how config.json differs from the config in the checkpoints; empty if it does not."""
    try:
        config = read_config_json(workdir)
    except InputError as error:
        return str(error)
    changes = differences(saved, config) if saved is not None else []
    return f"differs from the config in the checkpoints: {'; '.join(changes)}" if changes else ""


def _rows_problem(workdir: str, saved: dict | None) -> str:
    """Returns how many lines of metrics.jsonl are corrupted or out of order; empty if none are."""
    last_step, corrupted, misplaced = -1, 0, 0
    for row in rows_in(workdir, saved and saved.get("replicas")):
        if row is None:
            corrupted += 1
            continue
        misplaced += row["step"] <= last_step
        last_step = row["step"]
    problems = {
        f"{_count(corrupted, 'line')} corrupted": corrupted,
        f"{_count(misplaced, 'row')} out of order": misplaced,
    }
    return ", ".join(problem for problem, count in problems.items() if count)


def _count(number: int, noun: str) -> str:
    """Returns a number and its noun, such as "2 lines"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def check(folders: Iterable[str]) -> bool:
    """Checks runs and token folders, and prints one line for each of their parts.

    Args:
      folders: Local token folders; run folders, or folders that contain them, local or in a bucket.

    Returns:
      True if every part is intact.
    """
    tokens = [folder for folder in folders if not is_bucket(folder) and find_manifest(as_path(folder), MANIFEST)]
    others = [folder for folder in folders if folder not in tokens]
    runs = run_folders(others) if others else []
    is_intact = True
    for folder in [*tokens, *runs]:
        with wrap_bucket_errors(folder):
            for part, problem in token_findings(folder) if folder in tokens else findings(folder):
                print(f"{folder}: {part}: {problem or 'intact'}")
                is_intact = is_intact and not problem
    return is_intact
