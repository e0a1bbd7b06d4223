"""The figures of a run: those of its model, the curves of its metrics, and the page that shows them."""

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
    """Draws the figures of the first replica, the curves of all replicas, and `index.html`.

    A figure that cannot be drawn is logged as a warning: no run ends because of a figure.

    Args:
      model: decides what is drawn.
      evaluation: the evaluation of the step that is shown.
      samples: validation examples, arrays [n, ...] by name.
      rows: rows of metrics.jsonl, ascending.
      folder: where the files go; created if missing.
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
    for name, draw_at in files.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            draw_at(folder / name)
        except Exception as error:
            log.warning("%s was not drawn: %s", folder / name, _reason(error))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def panels(model: Model, rows: Sequence[Mapping]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Returns the title, the unit, and the (label, metric) pairs of each panel of the curves."""
    measured = {name.partition("/")[2] for row in rows for name in row}
    metrics_by_panel = {}
    for name, metric in model.metrics.items():
        if metric.panel is not None and name in measured:
            metrics_by_panel.setdefault(metric.panel, []).append((metric.label, name))
    return [(*panel, metrics) for panel, metrics in metrics_by_panel.items()]
