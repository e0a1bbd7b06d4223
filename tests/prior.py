"""A second-stage model, for tests that train on codes."""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
import optax
from annotated_types import Ge

from kvae.models.model import LossAndMetrics, Metric, Model


class Prior(Model):
    """A prior over codes: the probability of each code at each position."""

    codes: Annotated[int, Ge(2)] = 32
    positions: Annotated[int, Ge(1)] = 64

    def setup(self):
        self.logits = self.param("logits", nn.initializers.zeros, (self.positions, self.codes))

    def loss_and_metrics(self, batch, *, train=True):
        codes = batch["codebook"].reshape(-1, self.positions)
        losses = optax.softmax_cross_entropy_with_integer_labels(self.logits[None], codes).mean(axis=1)
        loss = jnp.mean(losses, where=batch["mask"]) if "mask" in batch else jnp.mean(losses)
        return LossAndMetrics(loss, {"loss": loss})

    @property
    def metrics(self):
        return {"loss": Metric(panel=("Loss", "nats a code"))}
