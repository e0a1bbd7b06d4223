"""Eight virtual devices, and small configs that train in seconds."""

import os
import tempfile

# Many tests train the same small models: a program is compiled once, for this process and those it starts.
CACHE = tempfile.TemporaryDirectory(prefix="kvae-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# Compiling takes longer than the tests themselves; without most optimisations, half as long.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder where data sets are prepared once for all tests."""
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def make_config(data_dir):
    """`make_config(model="vqvae", **fields)`: a tiny config on photographs, or digits; dots name nested fields."""

    def make(model="vqvae", **fields):
        config = {
            "seed": 0,
            "replicas": 1,
            "steps": 12,
            "batch_size": 8,
            "micro_batches": 1,
            "log_every_steps": 2,
            "evaluate_every_steps": 6,
            "checkpoint_every_steps": 4,
            "patience_evaluations": 0,
            "dataset": {"name": "photos", "size": 32, "data_dir": data_dir, "mean": (), "std": ()},
            "model": {
                "name": model,
                "channels": 8,
                "residual_channels": 4,
                "residual_blocks": 1,
                "codeword_size": 8,
                "dtype": "float32",
                "quantizer": "kohonen",
                "grid_shape": (4, 8),
                "neighborhood": "hard",
                "schedule": "inverse",
                "shrink_step": 0.1,
                "radius": 1.5,
                "decay": 0.99,
                "init_count": 1.0,
                "update_empty": True,
                "commitment_weight": 0.25,
            },
            "optimizer": {"learning_rate": 1e-3, "warmup": (), "clip_norm": 1.0},
        }
        if model == "urlsom":
            config["dataset"] = {"name": "digits", "size": 16, "mean": (), "std": ()}
            config["model"] = {
                "name": model,
                "grid_shape": (4, 8),
                "kernel": "gaussian",
                "sigma": 1.0,
                "similarity_weight": 2.0,
                "collapse_weight": 1.0,
                "dropout": 0.5,
                "projection_decay": 5e-4,
                "channels": (4, 8),
                "blocks": 1,
                "crop_sizes": (12, 16),
                "flip_probability": 0.5,
                "jitter": 0.4,
                "jitter_probability": 0.8,
                "greyscale_probability": 0.5,
                "label_names": tuple("0123456789"),
                "dtype": "float32",
            }
        for path, value in fields.items():
            *sections, last = path.split(".")
            section = config
            for name in sections:
                section = section[name]
            section[last] = value
        return config

    return make
