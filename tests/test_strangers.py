"""Parts that somebody else adds by assigning to a dict: a quantiser, a grid, a neighbourhood, a data set, a model.

The ordinary program trains, stops, resumes, evaluates, draws and loads them.
"""

import dataclasses
import pathlib
import shutil
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from annotated_types import Ge

import kvae
from kvae import main, measures
from kvae.core import program
from kvae.data import ArrayExamples, Dataset
from kvae.quantizers.base import Quantized, Quantizer
from kvae.report import __main__ as report
from kvae.training import pictures
from kvae.training.config.command_line import config_of
from kvae.training.config.sections import validate_config
from kvae.training.step import initial_state
from kvae.training.workdir.journal import read_metrics
from runs import assert_same_run, rows

ROOT = pathlib.Path(__file__).parents[1]
REGISTRIES = (kvae.QUANTIZERS, kvae.MODELS, kvae.GRIDS, kvae.NEIGHBORHOODS, kvae.DATASETS)


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Whatever a test adds is removed after it."""
    monkeypatch.chdir(ROOT)
    copies = [(registry, dict(registry)) for registry in REGISTRIES]
    yield
    for registry, before in copies:
        registry.clear()
        registry.update(before)


@pytest.fixture
def train_and_resume(tmp_path, monkeypatch):
    """Trains four steps; resumes a copy from the checkpoint of step 2; requires equal results and opens the copy."""

    def train(*arguments):
        def to(folder):
            assert program.run(main.main, [*arguments, f"--workdir={folder}"]) == 0

        with monkeypatch.context() as patch:
            patch.setattr(pictures, "draw", lambda *of_run: None)
            to(tmp_path / "whole")
        copy = shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
        shutil.rmtree(copy / "checkpoints" / "4")
        to(copy)
        assert_same_run(tmp_path / "whole", copy)
        assert [row["step"] for row in rows(copy)] == [2, 4]
        before, after = (read_metrics(str(folder)) for folder in (tmp_path / "whole", copy))
        assert before[0] == after[0], "the copy was not resumed but trained again: the times of step 2 differ"
        return kvae.load(str(copy)), {path.stem for path in (copy / "figures").glob("*.png")}

    return train


IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


class SignVQ(Quantizer):
    """Replaces each number by its sign: 2^d codes, no parameters and no grid."""

    commitment_weight: float = 0.25
    train: bool | None = None

    @nn.compact
    def quantize(self, z, *, mask=None, train=False):
        bits = jnp.sign(jax.lax.stop_gradient(z)) > 0
        codes = jnp.sum(bits * 2 ** jnp.arange(z.shape[-1]), axis=-1).astype(jnp.int32)
        loss = self.commitment_weight * jnp.mean(jnp.square(z - jax.lax.stop_gradient(self.lookup(codes))))
        quantized = z + jax.lax.stop_gradient(self.lookup(codes) - z)
        counted = jax.nn.one_hot(codes, self.codebook_size) * (1 if mask is None else mask[..., None])
        counts = jnp.sum(counted.reshape(-1, self.codebook_size), axis=0)
        return Quantized(quantized, codes, loss, measures.perplexity(counts), counts, {})

    def lookup(self, codes):
        return 2.0 * (codes[..., None] // 2 ** jnp.arange(4) % 2) - 1

    @property
    def codebook_size(self):
        return 2**4


class Bigram(kvae.Model):
    """Predicts each token from the previous one: cross-entropy of int32 sequences."""

    vocabulary: Annotated[int, Ge(2)] = 8

    methods = ("probabilities",)

    def setup(self):
        self.table = nn.Embed(self.vocabulary, self.vocabulary)

    def loss_and_metrics(self, batch, *, train=True):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            self.table(batch["tokens"][:, :-1]), batch["tokens"][:, 1:]
        )
        loss = jnp.mean(jnp.mean(losses, axis=1), where=batch["mask"])
        return kvae.LossAndMetrics(loss, {"loss": loss, "bits": loss / jnp.log(2.0)})

    @property
    def metrics(self):
        return {
            "loss": kvae.Metric(panel=("Loss", "nats")),
            "bits": kvae.Metric(panel=("Size", "bits a token"), column="bits"),
        }

    def probabilities(self, tokens):
        return nn.softmax(self.table(tokens))


def words(length: int = 9, count: Annotated[int, Ge(4)] = 40) -> Dataset:
    """Random walks on a circle of eight tokens."""
    steps = np.random.default_rng(0).choice([0, 1], (count, length), p=[0.1, 0.9])
    tokens = (np.cumsum(steps, axis=1) % 8).astype(np.int32)
    return Dataset(ArrayExamples({"tokens": tokens[8:]}), {"validation": ArrayExamples({"tokens": tokens[:8]})})


def test_model_of_tokens_and_its_data_set(train_and_resume, capsys):
    kvae.MODELS["bigram"], kvae.DATASETS["words"] = Bigram, words
    run, figures = train_and_resume(
        "--config=configs/photos_vqvae.py:smoke", "--config.model.name=bigram", "--config.dataset.name=words",
        "--config.dataset.length=5", "--config.steps=4", "--config.evaluate_every_steps=2",
        "--config.checkpoint_every_steps=2",
    )  # fmt: skip
    assert run.config["model"] == {"name": "bigram", "vocabulary": 8}
    assert run.config["dataset"] == {"name": "words", "length": 5, "count": 40}
    np.testing.assert_allclose(run.apply("probabilities", np.arange(8)).sum(axis=-1), 1, rtol=1e-5)
    last = rows(run.workdir)[-1]
    np.testing.assert_allclose(last["valid/bits"], last["valid/loss"] / np.log(2), rtol=1e-5)
    assert figures == {"curves"}
    with pytest.raises(kvae.InputError, match="is a run of Bigram, which has no method 'encode'; it has probabilities"):
        run.encode(IMAGES)
    assert program.run(report.main, [run.workdir, "--html"]) == 2
    assert "is a run of Bigram, which has no codebook to show" in capsys.readouterr().err
    few = ["--config=configs/photos_vqvae.py", "--config.dataset.name=words", "--config.dataset.count=3"]
    assert program.run(main.main, [*few, f"--workdir={run.workdir}"]) == 2
    assert "dataset.count is 3; it must be an integer >= 4" in capsys.readouterr().err


@dataclasses.dataclass(frozen=True)
class Sphere(kvae.topology.Grid):
    """Nodes spread evenly over a sphere, along a spiral. Distance is along the surface; neighbours are 1 apart."""

    adjacency: ClassVar = {"near": 1.5}

    def distance(self, codes, others):
        height = 1 - (2 * jnp.arange(self.size) + 1) / self.size
        turn, radius = jnp.pi * (1 + jnp.sqrt(5.0)) * jnp.arange(self.size), jnp.sqrt(1 - height**2)
        points = jnp.stack([radius * jnp.cos(turn), radius * jnp.sin(turn), height], axis=-1)
        cosine = jnp.sum(points[jnp.asarray(codes)] * points[jnp.asarray(others)], axis=-1)
        return jnp.where(codes == others, 0, jnp.arccos(jnp.clip(cosine, -1, 1)) * jnp.sqrt(self.size / (4 * jnp.pi)))


TRIANGLE = kvae.topology.Kernel(
    lambda distance, width, radius: jnp.maximum(0, 1 - distance / (radius * width)), lowest_width=0.5
)


def stripes(size: int = 32) -> Dataset:
    """Images of stripes."""
    waves = np.sin(np.outer(np.linspace(0.1, 2, 40), np.arange(size)))
    images = np.broadcast_to(127 * waves[:, None, :, None] + 128, (40, size, size, 3)).astype(np.uint8)
    return Dataset(ArrayExamples({"image": images[8:]}), {"a": ArrayExamples({"image": images[:8]})})


@pytest.fixture
def parts():
    """A quantiser, a grid, a neighbourhood and a data set, each in its registry."""
    kvae.QUANTIZERS["sign"], kvae.GRIDS["sphere"] = SignVQ, Sphere
    kvae.NEIGHBORHOODS["triangle"], kvae.DATASETS["stripes"] = TRIANGLE, stripes


CONFIG = """
import ml_collections

def get_config():
    top = {"name": "sign"}
    bottom = {"name": "kohonen", "grid_shape": (30,), "topology": "sphere", "neighborhood": "triangle", "radius": 3.0}
    return ml_collections.ConfigDict({
        "steps": 4, "batch_size": 8,
        "log_every_steps": 2, "evaluate_every_steps": 2, "checkpoint_every_steps": 2,
        "dataset": {"name": "stripes"},
        "model": {
            "name": "vqvae2", "channels": 8, "residual_channels": 4, "residual_blocks": 0, "embedding_dim": 4,
            "quantizer_top": top, "quantizer_bottom": bottom,
        },
        "optimizer": {"learning_rate": 1e-3},
    })
"""


def test_quantiser_grid_neighbourhood_and_data_set(parts, train_and_resume, tmp_path):
    (tmp_path / "strange.py").write_text(CONFIG)
    run, figures = train_and_resume(f"--config={tmp_path / 'strange.py'}")
    last = rows(run.workdir)[-1]
    # The data set: its fields, and the mean and std that were measured on it.
    assert run.config["dataset"].keys() == {"name", "size", "mean", "std"}
    assert 100 < run.config["dataset"]["mean"][0] < 150
    # The quantiser: codes of every kind, no codebook that learns, no grid.
    codes = run.encode(IMAGES)
    assert (codes["top"].shape, codes["bottom"].shape) == ((2, 4, 4), (2, 8, 8))
    assert run.decode(codes).shape == IMAGES.shape
    assert run.variables["codebook"].keys() == {"quantizer_bottom"}
    assert 1 <= last["valid/codes_used_top"] <= 16
    # The grid and the neighbourhood.
    layer = run.model.quantizers["bottom"]
    assert layer.grid == Sphere((30,))
    distances = layer.grid.distance(np.zeros(30, int), np.arange(30))
    shares = kvae.topology.matrix(layer.spreading, 0)[0]
    np.testing.assert_allclose(shares, np.maximum(0, 1 - distances / 3), atol=1e-5)
    assert run.variables["codebook"]["quantizer_bottom"]["step"] == 4
    assert run.codebooks["bottom"].shape == (30, 4)
    assert 0 <= last["valid/topographic_error_near_bottom"] <= 1
    assert not [name for name in last if name.startswith("valid/topographic_error") and name.endswith("_top")]
    # The pictures: a U-matrix only where there is a grid.
    both = {f"{name}_{level}" for name in ("codebook_map", "hit_map") for level in ("top", "bottom")}
    assert figures == {"reconstructions", "curves", *both, "u_matrix_bottom"}
    assert program.run(report.main, [run.workdir, "--html", f"--out={run.workdir}/page.html"]) == 0


def test_tokeniser_without_quantizers_is_one_line():
    class Half(kvae.Model):
        mean: tuple[float, ...] = ()
        code_strides: ClassVar = {"codebook": 4}
        methods = ("encode", "decode")

    kvae.MODELS["half"] = Half
    with pytest.raises(kvae.InputError, match=r"Half lists encode .* has no quantizers and no std and no __call__"):
        kvae.models.build({"name": "half"})


def test_neighbourhood_on_a_plane(parts):
    layer = kvae.KohonenVQ((16,), "triangle", radius=3.0)
    np.testing.assert_allclose(kvae.topology.matrix(layer.spreading, 0)[0, :4], [1, 2 / 3, 1 / 3, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "path", "expected"),
    [
        (["model.quantizer.name=sign"], ["model", "quantizer"], {"name": "sign"}),
        (["model.quantizer.topology=sphere"], ["model", "quantizer"], {"topology": "sphere"}),
        (["model.quantizer.neighborhood=triangle"], ["model", "quantizer"], {"neighborhood": "triangle"}),
        (["dataset.name=stripes"], ["dataset"], {"name": "stripes", "size": 32}),
    ],
)
def test_command_line_chooses_the_parts(parts, fields, path, expected):
    arguments = [f"--config.{field}" for field in fields]
    section = validate_config(config_of("configs/photos_vqvae.py:smoke", arguments)[0])
    for name in path:
        section = section[name]
    assert section.items() >= expected.items()


class Forgetful(Bigram):
    """Returns its loss in the form that training loops of Flax users expect."""

    def loss_and_metrics(self, batch, *, train=True):
        return super().loss_and_metrics(batch, train=train).loss, {}


@pytest.mark.parametrize(
    ("registry", "entry", "use", "message"),
    [
        (kvae.NEIGHBORHOODS, len, lambda: kvae.KohonenVQ((4, 4), "mine"), "it must be a kvae.topology.Kernel"),
        (kvae.GRIDS, 3, lambda: kvae.KohonenVQ((4, 4), topology="mine"), "is 3; it must make a kvae.grids.Grid"),
        (
            kvae.GRIDS,
            len,
            lambda: kvae.KohonenVQ((4, 4), topology="mine"),
            "is <built-in function len>; it must make a",
        ),
        (
            kvae.GRIDS,
            kvae.topology.Plane((2, 2)),
            lambda: kvae.KohonenVQ((4, 4), topology="mine"),
            "of the given shape",
        ),
    ],
)
def test_registry_entries_of_the_wrong_type_are_rejected(registry, entry, use, message):
    registry["mine"] = entry
    with pytest.raises(kvae.InputError, match=message):
        use()


def test_loss_of_the_wrong_type_is_rejected():
    with pytest.raises(
        kvae.InputError,
        match=r"loss_and_metrics of Forgetful returns an object of type tuple; it must return kvae.LossAndMetrics",
    ):
        initial_state(Forgetful(), optax.identity(), {"tokens": jnp.zeros((1, 9), jnp.int32)}, {}, 0)
