"""What somebody else adds, by assigning to a dict: a quantiser, a model, a grid, a neighbourhood, a data set.

Each is trained, stopped, resumed, evaluated, drawn and loaded by the ordinary program.
"""

import dataclasses
import pathlib
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
from kvae.training.step import initial_state
from runs import assert_same_run, rows

ROOT = pathlib.Path(__file__).parents[1]
REGISTRIES = (kvae.QUANTIZERS, kvae.MODELS, kvae.GRIDS, kvae.NEIGHBORHOODS, kvae.DATASETS)


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Whatever a test adds is taken away after it."""
    monkeypatch.chdir(ROOT)
    kept = {id(of_kind): (of_kind, dict(of_kind)) for of_kind in REGISTRIES}
    yield
    for of_kind, before in kept.values():
        of_kind.clear()
        of_kind.update(before)


@pytest.fixture
def story(tmp_path, data_dir):
    """Trains a run in two parts and in one, asks that they are equal, and opens it."""

    def tell(*fields, config="photos_vqvae"):
        arguments = [f"--config=configs/{config}.py:smoke", "--config.evaluate_every_steps=2", *fields]
        arguments.append("--config.optimizer.schedule=constant")  # others depend on the number of steps
        if not any(field.startswith("--config.dataset.name") for field in fields):
            arguments.append(f"--config.dataset.data_dir={data_dir}")
        for folder, parts in (("whole", [4]), ("parts", [2, 4])):
            for steps in parts:
                run = [*arguments, f"--workdir={tmp_path / folder}", f"--config.steps={steps}"]
                with pytest.MonkeyPatch.context() as patch:
                    if steps < 4 or folder == "whole":
                        patch.setattr(pictures, "draw", lambda *of_run: None)
                    assert program.run(main.main, run) == 0
        assert_same_run(tmp_path / "whole", tmp_path / "parts")
        assert [row["step"] for row in rows(tmp_path / "parts")] == [2, 4]
        return kvae.load(str(tmp_path / "parts")), {
            path.stem for path in (tmp_path / "parts" / "figures").glob("*.png")
        }

    return tell


IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


class SignVQ(Quantizer):
    """Every number becomes its sign: 2^d codes, nothing to learn, and no grid."""

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


def test_a_quantiser_that_is_no_codebook(story):
    kvae.QUANTIZERS["sign"] = SignVQ
    run, figures = story("--config.model.quantizer.name=sign", "--config.model.embedding_dim=4")
    codes = run.encode(IMAGES)["codebook"]
    assert codes.shape == (2, 8, 8)
    assert run.decode({"codebook": codes}).shape == IMAGES.shape
    assert figures == {"reconstructions", "codebook_map", "hit_map", "curves"}  # no U-matrix: there is no grid
    assert program.run(report.main, [run.workdir, "--html", f"--out={run.workdir}/page.html"]) == 0
    assert 1 <= rows(run.workdir)[-1]["valid/codes_used"] <= 16
    assert "valid/topographic_error_8" not in rows(run.workdir)[-1]


class Bigram(kvae.Model):
    """Predicts each token from the one before: cross-entropy of int32 sequences."""

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


def test_a_model_of_integers_with_another_objective_and_its_data_set(story, capsys):
    kvae.MODELS["bigram"], kvae.DATASETS["words"] = Bigram, words
    run, figures = story("--config.model.name=bigram", "--config.dataset.name=words", "--config.dataset.length=5")
    assert run.config["model"] == {"name": "bigram", "vocabulary": 8}
    assert run.config["dataset"] == {"name": "words", "length": 5, "count": 40}
    np.testing.assert_allclose(run.apply("probabilities", np.arange(8)).sum(axis=-1), 1, rtol=1e-5)
    last = rows(run.workdir)[-1]
    np.testing.assert_allclose(last["valid/bits"], last["valid/loss"] / np.log(2), rtol=1e-5)
    assert figures == {"curves"}
    with pytest.raises(kvae.InputError, match="is a run of Bigram: no 'encode'; it can probabilities"):
        run.encode(IMAGES)
    assert program.run(report.main, [run.workdir, "--html"]) == 2
    assert "is a run of Bigram, which has no codes of images" in capsys.readouterr().err
    few = ["--config=configs/photos_vqvae.py", "--config.dataset.name=words", "--config.dataset.count=3"]
    assert program.run(main.main, [*few, f"--workdir={run.workdir}"]) == 2
    assert "dataset.count is 3; it must be an integer, 4 or larger" in capsys.readouterr().err


@dataclasses.dataclass(frozen=True)
class Sphere(kvae.topology.Grid):
    """Nodes spread evenly over a sphere, along a spiral; distance along the surface, in units of that of neighbours."""

    adjacency: ClassVar = {"near": 1.5}

    def distance(self, codes, others):
        height = 1 - (2 * jnp.arange(self.size) + 1) / self.size
        turn, radius = jnp.pi * (1 + jnp.sqrt(5.0)) * jnp.arange(self.size), jnp.sqrt(1 - height**2)
        points = jnp.stack([radius * jnp.cos(turn), radius * jnp.sin(turn), height], axis=-1)
        cosine = jnp.sum(points[jnp.asarray(codes)] * points[jnp.asarray(others)], axis=-1)
        return jnp.where(codes == others, 0, jnp.arccos(jnp.clip(cosine, -1, 1)) * jnp.sqrt(self.size / (4 * jnp.pi)))


def test_a_grid(story):
    kvae.GRIDS["sphere"] = Sphere
    run, figures = story("--config.model.quantizer.topology=sphere", "--config.model.quantizer.grid_shape=(30,)")
    assert run.model.quantizers["codebook"].grid == Sphere((30,))
    assert 0 <= rows(run.workdir)[-1]["valid/topographic_error_near"] <= 1
    assert figures == {"reconstructions", "codebook_map", "hit_map", "u_matrix", "curves"}
    assert run.codebooks["codebook"].shape == (30, 3)


def test_a_neighborhood(story):
    kvae.NEIGHBORHOODS["triangle"] = kvae.topology.Kernel(
        lambda distance, width, radius: jnp.maximum(0, 1 - distance / (radius * width)), lowest_width=0.5
    )
    run, figures = story(
        "--config.model.quantizer.neighborhood=triangle",
        "--config.model.quantizer.radius=3.0",
        "--config.model.quantizer.initial_width=1.0",
    )
    layer = run.model.quantizers["codebook"]
    np.testing.assert_allclose(kvae.topology.matrix(layer.spreading, 0)[0, :4], [1, 2 / 3, 1 / 3, 0], atol=1e-6)
    assert "u_matrix" in figures
    assert run.variables["codebook"]["quantizer"]["step"] == 4


def test_a_data_set(story):
    def stripes(size: int = 32) -> Dataset:
        """Images of stripes."""
        waves = np.sin(np.outer(np.linspace(0.1, 2, 40), np.arange(size)))
        images = np.broadcast_to(127 * waves[:, None, :, None] + 128, (40, size, size, 3)).astype(np.uint8)
        return Dataset(ArrayExamples({"image": images[8:]}), {"a": ArrayExamples({"image": images[:8]})})

    kvae.DATASETS["stripes"] = stripes
    run, figures = story("--config.dataset.name=stripes")
    assert run.config["dataset"].keys() == {"name", "size", "mean", "std"}
    assert 100 < run.config["dataset"]["mean"][0] < 150
    assert figures == {"reconstructions", "codebook_map", "hit_map", "u_matrix", "curves"}


class Forgetful(Bigram):
    """Returns its loss as Flax users' own training loops do."""

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
            "of the shape that it is",
        ),
    ],
)
def test_an_entry_of_the_wrong_kind(registry, entry, use, message):
    registry["mine"] = entry
    with pytest.raises(kvae.InputError, match=message):
        use()


def test_an_objective_of_the_wrong_kind():
    with pytest.raises(
        kvae.InputError, match=r"loss_and_metrics of Forgetful returns a tuple; it must return kvae.LossAndMetrics"
    ):
        initial_state(Forgetful(), optax.identity(), {"tokens": jnp.zeros((1, 9), jnp.int32)}, 0)
