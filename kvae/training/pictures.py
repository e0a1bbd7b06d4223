"""Draws the figures of a run's model, its training curves, and the HTML page that shows them all."""

import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from kvae.models.model import Model
from kvae.training.evaluate import Evaluation
from kvae.training.parallel.devices import select_replica

log = logging.getLogger(__name__)


def draw(
    model: Model,
    evaluation: Evaluation,
    samples: Mapping[str, np.ndarray],
    rows: Sequence[Mapping],
    folder: pathlib.Path,
) -> None:
    """Draws the figures of the first replica, the training curves of all replicas, and `index.html`.

    If a figure cannot be drawn, a warning is logged and the run continues.

    Args:
      model: the model, whose method `pictures` returns the figures to draw.
      evaluation: the evaluation to show.
      samples: validation examples, arrays [n, ...] by name.
      rows: rows of metrics.jsonl, sorted by step.
      folder: the folder to write to; created if missing.
    """
    from kvae.plots import index
    from kvae.plots.curves import draw_training_curves

    step = rows[-1]["step"]
    first = select_replica(evaluation.variables, 0), samples, select_replica(evaluation.sums, 0), step
    curves = {
        "curves": lambda path: draw_training_curves(path, rows, panels(model, rows), f"Training up to step {step}")
    }
    try:
        pictures = {**model.pictures(*first), **curves}
    except Exception as error:
        log.warning("the figures of step %d were not drawn: %s", step, _reason(error))
        return
    title = f"{folder.absolute().parent.name}, step {step:,}"
    files = {f"{name}.png": picture for name, picture in pictures.items()}
    files["index.html"] = lambda path: index.write_index(path.parent, pictures, title)
    failed: dict[str, list[str]] = {}
    for name, draw_at in files.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            draw_at(folder / name)
        except Exception as error:
            failed.setdefault(_reason(error), []).append(name)
    for reason, names in failed.items():  # one line for a full disk, not one for each file
        log.warning("%s %s not drawn: %s", folder / ", ".join(names), "were" if len(names) > 1 else "was", reason)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def panels(model: Model, rows: Sequence[Mapping]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Returns the title, unit and (label, metric) pairs of each panel of the training curves.

    The title of a panel of counts ends in the number of vectors of each metric: "Codes in use (N = 57,600)".
    """
    last = {name: value for row in rows for name, value in row.items()}
    measured = {name.partition("/")[2] for name in last}
    metrics_by_panel, totals = {}, {}
    for name, metric in model.metrics.items():
        if metric.panel is not None and name in measured:
            metrics_by_panel.setdefault(metric.panel, []).append((metric.label, name))
            if metric.total and (total := last.get(f"valid/{metric.total}")):
                total = total[0] if isinstance(total, list) else total
                totals.setdefault(metric.panel, []).append(f"{total:,}")
    return [
        (f"{title} (N = {' / '.join(totals[title, unit])})" if (title, unit) in totals else title, unit, metrics)
        for (title, unit), metrics in metrics_by_panel.items()
    ]
