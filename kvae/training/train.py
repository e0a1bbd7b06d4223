"""The story of a run: from a config to a folder with metrics, checkpoints and pictures."""

import contextlib
import functools
import hashlib
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from kvae.core.digests import digests
from kvae.core.errors import InputError
from kvae.data import Dataset, Example
from kvae.models.model import Model
from kvae.training.config.sections import build_model, flatten, load_data, validate_config
from kvae.training.evaluate import Evaluator
from kvae.training.loop import Loop
from kvae.training.optimizer import make_optimizer
from kvae.training.parallel import devices, peers
from kvae.training.parallel.cluster import StopSignal, first_process_first
from kvae.training.parallel.devices import ReplicaGroups, Replicas, select_replica
from kvae.training.parallel.memory import check_memory
from kvae.training.step import example_batch, initial_state, train_step
from kvae.training.workdir.checkpoint import Checkpoints
from kvae.training.workdir.journal import Journal
from kvae.training.workdir.mirror import Mirror, opened
from kvae.training.workdir.run_config import open_workdir

log = logging.getLogger(__name__)


def train(
    config: Mapping,
    workdir: str,
    devices_used: Sequence[jax.Device] | None = None,
    mirror: Mirror | None = None,
) -> int:
    """Trains, or goes on training, the run of a folder.

    Args:
      config: see `configs/`, and `kvae.training.config.sections` for the fields and their defaults.
      workdir: the run's folder, made where it does not exist.
      devices_used: those to train on; all by default.
      mirror: of the run, where its log is written already; one of its own by default.

    Returns:
      The step that was reached: `config["steps"]`, also where the loss fell no more, or less where the run was asked to
      stop.

    Raises:
      InputError: something that the user can mend: a field, the data, the folder, a loss that is not finite.
    """
    config = validate_config(config)
    peers.agree("config", lambda: of_program(config))
    mesh = devices.make_mesh(config["replicas"], devices_used)
    devices.check_batch_size(config["batch_size"], mesh, config["micro_batches"])
    replicas = Replicas(config["replicas"], mesh)
    with first_process_first():
        dataset, config = load_data(config)
    log_sizes(config, dataset)
    peers.agree("data set", lambda: of_data(config, dataset))
    model = build_model(config)
    init, step = functions_of(config, model, dataset.train[0], mesh)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        mirror = stack.enter_context(opened(workdir, mirror))
        checkpoints = Checkpoints(workdir)
        stack.callback(checkpoints.close)
        open_workdir(workdir, config, checkpoints)
        groups = replicas.program(init, run_once=True)(seeds(config, replicas))
        step = replicas.program(step, donate=True)
        first_step, groups = newest_state(checkpoints, replicas, groups)
        if first_step:
            log.info("%s is at step %d of %d", workdir, first_step, config["steps"])
        else:
            log_overview(groups[0].params)
        journal = Journal(
            mirror.folder,
            first_step=first_step,
            steps=config["steps"],
            patience=config["patience_evaluations"],
            writes=jax.process_index() == 0,
        )
        stack.callback(journal.close)
        evaluator = Evaluator(model, replicas, dataset, config["batch_size"])
        return Loop(config, workdir, replicas, evaluator, checkpoints, journal, mirror, stop).run(
            step, groups, first_step
        )


def seeds(config: Mapping, replicas: Replicas) -> ReplicaGroups:
    """The seed of each replica, int32 [g] by group."""
    return replicas.split(config["seed"] + np.arange(replicas.count, dtype=np.int32))


def functions_of(config: Mapping, model: Model, example: Example, mesh: Mesh) -> tuple[Callable, Callable]:
    """The first state from a seed, and the step from a state and a batch to the next state; both of one replica.

    Args:
      config: of the run.
      model: that is trained.
      example: one of the training set; only shapes and types matter.
      mesh: the devices that are to hold it.

    Raises:
      InputError: the batch is to be split, and the model's loss is of a whole one, or the memory holds no step.
    """
    if model.needs_whole_batch and config["micro_batches"] > 1:
        raise InputError(f"micro_batches is {config['micro_batches']}; it must be 1, for this loss is of a whole batch")
    optimizer = make_optimizer(**config["optimizer"], steps=config["steps"])
    init = functools.partial(initial_state, model, optimizer, example_batch(example))
    check_memory(config, init, example, mesh)
    return init, functools.partial(train_step, model, optimizer, config["micro_batches"])


def newest_state(checkpoints: Checkpoints, replicas: Replicas, groups: ReplicaGroups) -> tuple[int, ReplicaGroups]:
    """The step and the groups of the newest checkpoint that can be read; 0 and `groups` where there is none."""
    found = checkpoints.restore_newest(replicas.form(groups))
    return (found[0], replicas.split(found[1])) if found else (0, groups)


HOSTS_MAY_DIFFER = ("dataset.data_dir", "dataset.path")


def of_program(config: Mapping) -> dict[str, object]:
    """What all processes must have been started with: the config, the code, and as many devices of one kind."""
    sources = sorted(pathlib.Path(__file__).parents[1].rglob("*.py"))
    code = hashlib.blake2b(b"".join(path.read_bytes() for path in sources), digest_size=8).hexdigest()
    fields = {f"config.{name}": value for name, value in flatten(config).items() if name not in HOSTS_MAY_DIFFER}
    devices = {"the kind of devices": jax.default_backend(), "the number of its devices": jax.local_device_count()}
    return {**fields, "the code of kvae": code, "the version of JAX": jax.__version__, **devices}


def of_data(config: Mapping, dataset: Dataset) -> dict[str, object]:
    """What all processes must have read: as many examples, the same mean, and the same first and last example."""
    sets = {"the training set": dataset.train, **{f"the set {name!r}": of for name, of in dataset.validation.items()}}
    facts = {f"the size of {name}": len(examples) for name, examples in sets.items()}
    for index in (0, -1):
        example = dataset.train[range(len(dataset.train))[index]]
        facts[f"example {index} of the training set"] = str(sorted(digests(dict(example)).items()))
    return facts | {f"dataset.{name}": config["dataset"].get(name) for name in ("mean", "std")}


def log_sizes(config: Mapping, dataset: Dataset) -> None:
    """Logs how many examples there are to learn from, and how many to be measured on."""
    sizes = ", ".join(f"{name} {len(examples):,}" for name, examples in dataset.validation.items())
    log.info("%s: %s training examples; held out: %s", config["dataset"]["name"], f"{len(dataset.train):,}", sizes)


def log_overview(params) -> None:
    """Logs the names, shapes and number of the parameters of one replica."""
    overview = parameter_overview.get_parameter_overview(select_replica(params, 0), include_stats=False)
    for line in overview.splitlines():
        log.info("%s", line)
