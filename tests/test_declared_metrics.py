"""Every metric that a model declares is computed, or the run is refused before its first step."""

import logging
import types

import jax.numpy as jnp
import numpy as np
import pytest

import kvae
from kvae import data, models
from kvae.core.errors import InputError
from kvae.training.evaluate import Evaluator, all_metrics
from kvae.training.parallel.devices import Replicas, make_mesh

ARRAYS = {"x": np.arange(10, dtype=np.float32)}


class Mean(kvae.Model):
    """Its loss is the mean of x; it declares whatever a test sets."""

    declared = types.MappingProxyType({})

    def loss_and_metrics(self, batch, *, train=True):
        loss = jnp.mean(batch["x"], where=batch["mask"])
        return kvae.LossAndMetrics(loss, {"loss": loss})

    def batch_sums(self, batch):
        sums = super().batch_sums(batch)
        return sums | {"large": jnp.sum(jnp.where(batch["mask"], batch["x"] >= 8, 0)), "table": jnp.ones((2, 2))}

    @property
    def metrics(self):
        return super().metrics | dict(self.declared)


class Ratio(Mean):
    def compute_metrics(self, sums):
        return {"loss": float(sums["loss"] / sums["examples"])}


def evaluator_of(model, **declared):
    model.declared = declared
    examples = data.ArrayExamples(ARRAYS)
    return Evaluator(model(), Replicas(1, make_mesh(1)), data.Dataset(examples, {"validation": examples}), 8)


@pytest.mark.parametrize("model", [Mean, Ratio])
def test_declared_metric_is_computed(model):
    evaluator = evaluator_of(model, share=kvae.Metric(lambda sums: sums["large"] / sums["examples"]))
    row = evaluator.evaluate([{}], np.ones(1, bool)).row
    assert row["valid/share"] == 0.2 and row["valid/loss"] == 4.5 and type(row["valid/share"]) is float


def test_declared_metric_replaces_the_mean_of_its_name():
    evaluator = evaluator_of(Mean, large=kvae.Metric(lambda sums: int(sums["large"])))
    assert evaluator.evaluate([{}], np.ones(1, bool)).row["valid/large"] == 2


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda sums: 1 / 0, r"metrics\['x'\].compute fails: ZeroDivisionError: division by zero"),
        (lambda sums: sums["larg"], "compute fails: KeyError: 'larg'; the sums are examples, large, loss, table"),
        (lambda sums: sums["table"], r"compute returns array.*; it must return a number or None"),
        (lambda sums: "many", r"metrics\['x'\].compute returns 'many'; it must return a number or None"),
    ],
)
def test_failing_metric_is_refused_before_training(compute, message):
    with pytest.raises(InputError, match=message):
        evaluator_of(Mean, x=kvae.Metric(compute)).check([{}])


def test_metric_that_needs_all_examples_is_accepted():
    evaluator = evaluator_of(Mean, x=kvae.Metric(lambda sums: 1 / int(sums["large"])))  # large: not in the first batch
    evaluator.check([{}])
    assert evaluator.evaluate([{}], np.ones(1, bool)).row["valid/x"] == 0.5


def test_metric_without_value_is_warned_about_once(caplog):
    evaluator = evaluator_of(Mean, order=kvae.Metric(panel=("Order", "order")))
    with caplog.at_level(logging.WARNING, "kvae"):
        for _ in range(2):
            evaluator.evaluate([{}], np.ones(1, bool))
    assert caplog.text.count("Mean declares the metrics order but never computes them") == 1


def test_what_metrics_hold_is_checked():
    with pytest.raises(InputError, match="panel is 'Order'; it must be"):
        kvae.Metric(panel="Order")
    with pytest.raises(InputError, match=r"metrics of Mean: 'share' is <function.*; it must be a kvae.Metric"):
        evaluator_of(Mean, share=lambda sums: 1.0).check([{}])


def test_subclass_of_a_vqvae_adds_and_replaces_metrics():
    class Own(models.VQVAE):
        @property
        def metrics(self):
            return super().metrics | {
                "size": kvae.Metric(lambda sums: float(sums["examples"])),
                "psnr": kvae.Metric(lambda sums: -1.0),
            }

    model = Own(quantizer=kvae.KohonenVQ((2, 2)))
    codebook = {"counts": np.array([3.0, 1, 0, 0]), "quantization_error": 2.0}
    codebook |= {f"topographic_error_{name}": 1.0 for name in model.quantizer.grid.adjacency}
    sums = {"examples": 2.0, "psnr": 60.0, "reconstruction_loss": 1.0, "commitment_loss": 1.0}
    metrics = all_metrics(model, sums | {"codebooks": {"codebook": codebook}})
    assert metrics["size"] == 2 and metrics["psnr"] == -1 and metrics["codes_used"] == 2 and metrics["loss"] == 1
