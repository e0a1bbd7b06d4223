"""The pictures of a run: those of its model, and the curves of its metrics."""

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
    """Draws the pictures of the first replica into `folder`, curves of all, and `index.html`, which shows them.

    A picture that cannot be drawn is a warning: a run does not end for it.

    Args:
      model: decides what is drawn.
      evaluation: of the step that is shown.
      samples: validation examples.
      rows: of metrics.jsonl.
      folder: where the files go.
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
        log.warning("the pictures of step %d were not drawn: %s", step, _reason(error))
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


def _reason(error):
    return " ".join(str(error).split()) or type(error).__name__


def panels(model: Model, rows: Sequence[Mapping]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """What `curves` draws of a model: title and unit of each panel, and the (label, metric) pairs in it."""
    there = {name.partition("/")[2] for row in rows for name in row}
    found = {}
    for name, metric in model.metrics.items():
        if metric.panel is not None and name in there:
            found.setdefault(metric.panel, []).append((metric.label, name))
    return [(*panel, metrics) for panel, metrics in found.items()]
