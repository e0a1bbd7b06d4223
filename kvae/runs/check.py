"""Whether a run at rest is what was saved: every checkpoint, its config.json and its metrics.jsonl."""

import contextlib
from collections.abc import Iterator

from kvae.core.buckets import wrap_bucket_errors
from kvae.core.errors import InputError
from kvae.training.workdir.checkpoint import Checkpoints, DamagedError
from kvae.training.workdir.journal import rows_in
from kvae.training.workdir.metrics_file import ROWS
from kvae.training.workdir.run_config import differences, read_config_json


def findings(workdir: str) -> Iterator[tuple[str, str]]:
    """What is checked, and what is wrong with it; an empty text where it is whole."""
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        if not checkpoints.steps():
            yield "checkpoints", "there are none"
        for step in checkpoints.steps():
            problem = ""
            try:
                checkpoints.restore_as_saved(step)
            except DamagedError as error:
                problem = f"damaged ({error})"
            yield f"checkpoint {step}", problem
        saved = checkpoints.config()
    problem = ""
    try:
        found = read_config_json(workdir)
        problem = "; ".join(differences(saved, found)) if saved is not None else ""
        problem = problem and f"other than in the checkpoints: {problem}"
    except InputError as error:
        problem = str(error)
    yield "config.json", problem
    before, damaged, order = -1, 0, 0
    for row in rows_in(workdir):
        damaged += row is None
        if row is not None:
            order += row["step"] <= before
            before = row["step"]
    problems = [f"{damaged} damaged lines"] * bool(damaged) + [f"{order} rows out of order"] * bool(order)
    yield ROWS, ", ".join(problems)


def check(workdir: str) -> bool:
    """Prints a line for each part of a run; returns whether all are whole."""
    whole = True
    with wrap_bucket_errors(workdir):
        for part, problem in findings(workdir):
            print(f"{workdir}: {part}: {problem or 'whole'}")
            whole = whole and not problem
    return whole
