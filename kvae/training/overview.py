"""What the log says of a run as it begins: how much there is to learn from, and what is learned."""

import logging
from collections.abc import Mapping

from clu import parameter_overview

from kvae.data import Dataset
from kvae.training.replicas import one_of

log = logging.getLogger(__name__)


def log_sizes(config: Mapping, dataset: Dataset) -> None:
    """Logs how many examples there are to learn from, and how many to be measured on."""
    sizes = ", ".join(f"{name} {len(examples):,}" for name, examples in dataset.validation.items())
    log.info("%s: %s training examples; held out: %s", config["dataset"]["name"], f"{len(dataset.train):,}", sizes)


def log_overview(params) -> None:
    """Logs the names, shapes and number of the parameters of one replica."""
    overview = parameter_overview.get_parameter_overview(one_of(params, 0), include_stats=False)
    for line in overview.splitlines():
        log.info("%s", line)
