"""Fixtures: eight virtual devices, small configs, and runs trained once for all tests."""

import gc
import json
import os
import pathlib
import shutil
import signal
import tempfile
import types
from importlib import metadata

# Many tests run the same programs. A shared cache compiles each of them once for all test processes and the processes
# that they start; xdist's workers inherit the folder from their parent.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="kvae-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # Most of the time goes to compilation. Without most optimisations it takes half as long; with the older emitters,
    # which jax 0.11 no longer has, half of that. See `default_emitters` for what they get wrong.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    if metadata.version("jaxlib").startswith("0.10."):
        flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_multi_thread_eigen=false"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"

import filelock
import hypothesis
import jax
import pytest

from kvae.training.config.command_line import config_of

ROOT = pathlib.Path(__file__).parents[1]

# `pytest --hypothesis-profile=nightly` tries more examples, and different ones each time.
EXAMPLES = {"deadline": None, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}
hypothesis.settings.register_profile("ordinary", max_examples=25, derandomize=True, **EXAMPLES)
hypothesis.settings.register_profile("nightly", max_examples=500, print_blob=True, **EXAMPLES)
hypothesis.settings.load_profile("ordinary")

jax.config.update("jax_num_cpu_devices", 8)

# Programs and their traces stay in memory, millions of objects; looking for garbage among all of them takes minutes.
gc.set_threshold(100_000, 50, 1_000)

# Files of minutes, the longest first: a long file that starts last keeps one process busy while the other waits.
LONGEST = ("multiprocess", "main", "bucket", "kill", "train", "workdir", "conformance", "readme", "run", "nnx")


def pytest_collection_modifyitems(items):
    """Starts the longest files first; pytest keeps the order of the others."""
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="session", autouse=True)
def shared_programs():
    """Runs of equal configs share their programs, see `sharing`; half of the time would go to tracing them again."""
    from sharing import shared_programs  # imports most of kvae

    with shared_programs():
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def data_dir(shared_folder):
    """A folder where data sets are prepared once for all tests."""
    folder = shared_folder / "data"
    folder.mkdir(exist_ok=True)
    return str(folder)


@pytest.fixture
def undrawn(request, monkeypatch):
    """Runs draw no figures, which take half of the time of a small run, unless the test is marked `drawn`."""
    if "drawn" not in request.keywords:
        monkeypatch.setattr("kvae.training.pictures.draw", lambda *of_run: None)


@pytest.fixture
def default_signal_handlers():
    """Restores the default handlers: under nohup or in the background, signals would be ignored."""
    handlers = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.fixture
def default_emitters(monkeypatch):
    """Compiles training programs with XLA's default emitters; the older ones compute some crops of images wrongly."""
    from kvae.training.parallel import devices  # imports most of kvae

    if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):

        def jit(function, compiler_options=None, **options):
            compiler_options = {"xla_cpu_use_fusion_emitters": True} | (compiler_options or {})
            return jax.jit(function, compiler_options=compiler_options, **options)

        monkeypatch.setattr(devices, "jax", types.SimpleNamespace(**{**vars(jax), "jit": jit}))


@pytest.fixture
def in_the_project(monkeypatch):
    """Runs the test in the project's folder, as users run the README's commands."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def bucket():
    """The emulated bucket, used by this process and all processes that it starts."""
    from emulator import Emulator  # imports the emulator only for tests that use it

    emulator = Emulator()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in emulator.environment.items():
            patch.setenv(name, value)
        yield emulator
    emulator.close()


# The paper's quantiser and optimiser, for tests of equivalence.
PAPER = {
    "model.augmentations": (), "model.quantizer.neighborhood": "hard", "model.quantizer.decay": 0.99,
    "model.quantizer.initial_width": 1.0, "model.quantizer.lowest_width": 0.0, "model.quantizer.shrink_step": 0.1,
    "optimizer.name": "adam",
}  # fmt: skip
TINY = {
    "vqvae": PAPER
    | {"model.residual_blocks": 0, "model.embedding_dim": 8, "model.channels": 8, "model.residual_channels": 4},
    "urlsom": {
        "model.grid_shape": (4, 8), "model.sigma": 1.0, "model.dropout": 0.5, "model.projection_decay": 5e-4,
        "model.crop_sizes": (12, 16), "model.flip_probability": 0.5, "model.greyscale_probability": 0.5,
        "optimizer.learning_rate": 1e-3, "optimizer.clip_norm": 1.0,
    },
}  # fmt: skip
TINY["vqvae2"] = TINY["vqvae"] | {"dataset.size": 32}
FILES = {"vqvae": "photos_vqvae", "vqvae2": "photos_vqvae2", "urlsom": "digits_urlsom"}
EVERY = {"steps": 12, "log_every_steps": 2, "evaluate_every_steps": 6, "checkpoint_every_steps": 4}
EVERY |= {"optimizer.schedule": "constant"}  # so that a run of fewer steps is the beginning of a longer one


@pytest.fixture(scope="session")
def make_config(data_dir):
    """`make_config(model="vqvae", **fields)`: a smoke form made smaller; fields may be nested, with dots."""

    def make(model="vqvae", **fields):
        config, _ = config_of(f"{ROOT}/configs/{FILES[model]}.py:smoke", [])
        if model != "urlsom":
            config["dataset"]["data_dir"] = data_dir
        for path, value in {**EVERY, **TINY[model], **fields}.items():
            *sections, last = path.split(".")
            section = config
            for name in sections:
                section = section[name]
            section[last] = value
        return config

    return make


# What `trained_run` trains: four steps, then one evaluation and one checkpoint.
SHORT = {"steps": 4, "evaluate_every_steps": 4}


@pytest.fixture(scope="session")
def trained_run(make_config, shared_folder):
    """`trained_run(model="vqvae", **fields)`: the folder of a run trained once for all tests, which must not change it.

    Its config is `make_config(model, steps=4, evaluate_every_steps=4, **fields)`; it trains on one device and draws no
    pictures. Every new set of fields is one more training, so prefer none.
    """
    from runs import files_of, run  # imports most of kvae

    def trained(model="vqvae", **fields):
        name = "-".join([f"run-{model}", *(f"{name}={value}" for name, value in sorted(fields.items()))])
        folder, record = shared_folder / name, shared_folder / f"{name}.json"
        with filelock.FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
            if not record.exists():
                patch.setattr("kvae.training.pictures.draw", lambda *of_run: None)
                run(make_config(model, **{**SHORT, **fields}), folder)
                record.write_text(json.dumps(files_of(folder)))
        assert files_of(folder) == json.loads(record.read_text()), "a test changed a shared run; it needs a copy"
        return folder

    return trained


@pytest.fixture
def copy_of_run(trained_run, tmp_path):
    """`copy_of_run(model="vqvae", **fields)`: the test's own copy of a `trained_run`."""

    def copy(model="vqvae", **fields):
        folder = trained_run(model, **fields)
        return shutil.copytree(folder, tmp_path / folder.name)

    return copy
