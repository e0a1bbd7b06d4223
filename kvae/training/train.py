"""Trains a run: from a config to a folder with metrics, checkpoints and figures."""

import contextlib
import functools
import hashlib
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kvae import data
from kvae.core.digests import digests
from kvae.core.errors import InputError, first_line, short_repr
from kvae.core.image_arrays import IMAGE_STATISTICS
from kvae.data import Dataset, Example
from kvae.models.model import Model
from kvae.training.config.sections import build_model, flatten, load_data, validate_config
from kvae.training.evaluate import Evaluator
from kvae.training.loop import Loop, RunFiles
from kvae.training.optimizer import make_optimizer
from kvae.training.parallel import devices, peers
from kvae.training.parallel.cluster import StopSignal, first_process_first
from kvae.training.parallel.devices import ReplicaGroups, Replicas, select_replica
from kvae.training.parallel.memory import check_memory
from kvae.training.step import example_batch, initial_state, train_step
from kvae.training.workdir.checkpoint import Checkpoints
from kvae.training.workdir.journal import Journal
from kvae.training.workdir.mirror import Mirror, locked_workdir
from kvae.training.workdir.run_config import open_workdir

log = logging.getLogger(__name__)

SIZE_FIELDS = ("grid_shape", "depth", "levels", "groups")
"""Fields of models and quantisers that determine how long compilation takes."""


def train(
    config: Mapping[str, Any],
    workdir: str,
    devices_used: Sequence[jax.Device] | None = None,
    mirror: Mirror | None = None,
    stop: StopSignal | None = None,
) -> int:
    """Trains a new run, or resumes the run in the folder. The public function is `kvae.train`.

    Args:
      config: nested dicts; configs/README.md lists the fields.
      workdir: the run's folder; created if missing.
      devices_used: the devices to train on; all by default.
      mirror: the mirror of the folder, if the caller has created one for the log; by default a new one.
      stop: records stop signals, so that the caller can see which one arrived; by default a new one.

    Returns:
      The last step of the config, also after early stopping. If a signal stopped the run, the step that it reached.

    Raises:
      InputError: a field, the data or the folder is invalid, or the loss is not finite.
    """
    config = validate_config(config)
    peers.agree("config", lambda: facts_of_program(config))
    mesh = devices.make_mesh(config["replicas"], devices_used)
    devices.check_batch_size(config["batch_size"], mesh, config["micro_batches"])
    replicas = Replicas(config["replicas"], mesh)
    with first_process_first():
        dataset, config = load_data(config)
    log_sizes(config, dataset)
    peers.agree("data set", lambda: facts_of_data(config, dataset))
    model = build_model(config)
    log_compilation(config)
    init, step = init_and_step(config, model, dataset.train[0], mesh, model.variables_from_data(dataset))
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop or StopSignal())
        mirror = stack.enter_context(locked_workdir(workdir, mirror))
        checkpoints = Checkpoints(workdir)
        close_at_end(stack, checkpoints.close)
        open_workdir(workdir, config, checkpoints)
        groups = replicas.program(init, run_once=True)(seeds(config, replicas))
        first_step, groups = newest_state(checkpoints, replicas, groups)
        if first_step:
            log.info("%s is at step %d of %d", workdir, first_step, config["steps"])
        else:
            log_parameters(groups[0].params)
        journal = Journal(
            mirror.folder,
            first_step=first_step,
            steps=config["steps"],
            patience=config["patience_evaluations"],
            writes=jax.process_index() == 0,
            replicas=config["replicas"],
        )
        close_at_end(stack, journal.close)
        evaluator = Evaluator(model, replicas, dataset, config["batch_size"])
        files = RunFiles(workdir, mirror, checkpoints, journal)
        return Loop(config, replicas.program(step, donate=True), evaluator, files, stop).run(groups, first_step)


def close_at_end(stack: contextlib.ExitStack, close: Callable[[], None]) -> None:
    """Calls `close` when the stack ends. If training raised an error, an InputError of `close` is suppressed."""

    def end(kind: type | None, error: BaseException | None, traceback: object) -> None:
        with contextlib.suppress(*([InputError] if error else [])):
            close()

    stack.push(end)


def seeds(config: Mapping[str, Any], replicas: Replicas) -> ReplicaGroups:
    """Returns the seed of each replica: int32 [g] per group."""
    return replicas.split(config["seed"] + np.arange(replicas.count, dtype=np.int32))


def init_and_step(
    config: Mapping[str, Any],
    model: Model,
    example: Example,
    mesh: Mesh,
    data_variables: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns two functions of one replica: init(seed) -> state, jitted, and step(state, batch) -> state.

    Args:
      config: the validated config.
      model: the model to train.
      example: one training example; only shapes and dtypes matter.
      mesh: the devices that will hold the state.
      data_variables: see `kvae.models.model.Model.variables_from_data`.

    Raises:
      InputError: micro_batches is above 1 although the model's loss needs the whole batch, the model cannot process
        the example, or a step does not fit in memory.
    """
    if model.needs_whole_batch and config["micro_batches"] > 1:
        raise InputError(
            f"micro_batches is {config['micro_batches']}; it must be 1, because this model's loss needs the whole batch"
        )
    optimizer = make_optimizer(**config["optimizer"], steps=config["steps"])
    # Jitted, so that the memory check and the program of all replicas share one trace.
    init = jax.jit(functools.partial(initial_state, model, optimizer, example_batch(example), data_variables))
    with wrap_data_errors(config, example):
        check_memory(config, init, example, mesh)
    return init, functools.partial(train_step, model, optimizer, config["micro_batches"])


@contextlib.contextmanager
def wrap_data_errors(config: Mapping[str, Any], example: Example) -> Iterator[None]:
    """Turns a model's exception on a training example into a one-line InputError; `--debug` shows both.

    Raises:
      InputError: the block raised an exception that arrays of the wrong name, shape or dtype can cause.
    """
    try:
        yield
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        arrays = ", ".join(
            f"{name} {np.asarray(value).dtype}{list(np.shape(value))}" for name, value in example.items()
        )
        reason = f"{type(error).__name__}: {short_repr(first_line(error), 200, str)}"
        raise InputError(
            f"the model {config['model']['name']} cannot process the data set {config['dataset']['name']} "
            f"({arrays}): {reason}"
        ) from error


def newest_state(checkpoints: Checkpoints, replicas: Replicas, groups: ReplicaGroups) -> tuple[int, ReplicaGroups]:
    """Returns the step and state of the newest intact checkpoint; 0 and `groups` if there is none."""
    restored = checkpoints.restore_newest(replicas.abstract(groups))
    return (restored[0], replicas.split(restored[1])) if restored else (0, groups)


def facts_of_program(config: Mapping[str, Any]) -> dict[str, object]:
    """Returns facts that must be equal in all processes of a run: about the config, the code and the devices."""
    sources = sorted(pathlib.Path(__file__).parents[1].rglob("*.py"))
    code = hashlib.blake2b(b"".join(path.read_bytes() for path in sources), digest_size=8).hexdigest()
    may_differ = {f"dataset.{name}" for name in data.local_paths(config["dataset"])}
    fields = {f"config.{name}": value for name, value in flatten(config).items() if name not in may_differ}
    device_facts = {"the platform": jax.default_backend(), "the number of local devices": jax.local_device_count()}
    return {**fields, "the code of kvae": code, "the version of JAX": jax.__version__, **device_facts}


def facts_of_data(config: Mapping[str, Any], dataset: Dataset) -> dict[str, object]:
    """Returns facts about the data that must be equal in all processes: sizes, first and last example, mean and std."""
    sets = {"the training set": dataset.train}
    sets |= {f"the validation set {name!r}": examples for name, examples in dataset.validation.items()}
    facts = {f"the size of {name}": len(examples) for name, examples in sets.items()}
    for index in (0, -1):
        example = dataset.train[range(len(dataset.train))[index]]
        facts[f"example {index} of the training set"] = str(sorted(digests(dict(example)).items()))
    return facts | {f"dataset.{name}": config["dataset"].get(name) for name in IMAGE_STATISTICS}


def log_sizes(config: Mapping[str, Any], dataset: Dataset) -> None:
    """Logs the sizes of the training and validation sets."""
    sizes = ", ".join(f"{name} {len(examples):,}" for name, examples in dataset.validation.items())
    log.info("%s: %s training examples; held out: %s", config["dataset"]["name"], f"{len(dataset.train):,}", sizes)


def log_compilation(config: Mapping[str, Any]) -> None:
    """Logs the name of the model, and the fields that determine how long compilation takes."""
    fields = flatten(config["model"])
    sizes = "".join(f", {name} {value}" for name, value in fields.items() if name.split(".")[-1] in SIZE_FIELDS)
    log.info("building and compiling model %s%s; large sizes may take minutes", fields["name"], sizes)


def log_parameters(params: Any) -> None:
    """Logs the name, shape and size of each parameter of one replica, and their total."""
    leaves = jax.tree.leaves_with_path(select_replica(params, 0))
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        log.info("%-64s %-20s %12s", name, leaf.shape, f"{leaf.size:,}")
    log.info("%s parameters", f"{sum(leaf.size for _, leaf in leaves):,}")
