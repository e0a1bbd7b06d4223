"""What VQ-VAE and VQ-VAE-2 share: normalisation, objective, sums and metrics of an evaluation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import flax
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le

from kvae import measures
from kvae.core.errors import InputError
from kvae.core.fields import OneOf, Positive, Width
from kvae.models.autoencoders import inspection
from kvae.models.autoencoders.augmentations import AUGMENTATIONS, augment
from kvae.models.coding import level, part_names, suffix, sums_by_codebook
from kvae.models.model import DTYPES, Batch, LossAndMetrics, Metric, Model, check_images
from kvae.quantizers.base import Quantized, Quantizer


@flax.struct.dataclass
class Reconstruction:
    """What an autoencoder returns, in training and in evaluation alike.

    Attributes:
      images: reconstructions on the normalised scale, float32 [b, h, w, 3].
      latents: by codebook, the encoder's vectors z, float [b, h', w', d].
      quantized: by codebook, the quantiser's output.
    """

    images: jax.Array
    latents: Mapping[str, jax.Array]
    quantized: Mapping[str, Quantized]


def _mean(name: str) -> Callable:
    """The mean over examples of what is added up as `name`."""
    return lambda sums: float(sums[name] / sums["examples"])


def _per_position(name: str) -> Callable:
    """The mean over positions of what is added up as `name`."""
    return lambda sums: float(sums[name] / sums["counts"].sum())


LOSSES = ("Losses", "mean squared error")

METRICS = {
    "loss": Metric(lambda sums: _mean("reconstruction_loss")(sums) + _mean("commitment_loss")(sums), better=min),
    "reconstruction_loss": Metric(_mean("reconstruction_loss"), panel=LOSSES, label="reconstruction"),
    "commitment_loss": Metric(_mean("commitment_loss"), panel=LOSSES, label="commitment"),
    "psnr": Metric(
        _mean("psnr"), panel=("Reconstruction quality", "PSNR (dB)"), column="PSNR (dB)", decimals=1, better=max
    ),
    "perturbation_psnr_1": Metric(column="PSNR, codes moved by 1 (dB)", decimals=1),
}
"""Metrics of a whole model, from its sums. `perturbation_psnr_1` is measured by `inspection`."""

CODEBOOK_METRICS = {
    "perplexity": Metric(
        lambda sums: float(measures.perplexity(sums["counts"])),
        pooled=True,
        panel=("How evenly codes are used", "perplexity (effective codes)"),
        column="perplexity",
        decimals=0,
    ),
    "codes_used": Metric(
        lambda sums: int(np.count_nonzero(sums["counts"])),
        pooled=True,
        panel=("Codes in use", "codes used at least once"),
        column="codes used",
        decimals=0,
    ),
    "quantization_error": Metric(_per_position("quantization_error")),
}
"""Metrics of each codebook, from what `Quantizer.batch_sums` adds up."""


def codebook_metrics(layer: Quantizer) -> dict[str, Metric]:
    """`CODEBOOK_METRICS`, and a topographic error for each way in which nodes of its grid are neighbours, if any."""
    found = dict(CODEBOOK_METRICS)
    for number, adjacency in enumerate(layer.grid.adjacency if layer.grid else ()):
        name = f"topographic_error_{adjacency}"
        found[name] = Metric(_per_position(name), column=None if number else "topographic error")
    return found


class Autoencoder(Model):
    """The part of a VQ-VAE that does not depend on its layers. Abstract: see `VQVAE` and `VQVAE2`.

    Images go in and come out as uint8 [b, h, w, 3]; inside they are (x - mean) / std, and losses are measured on that
    scale, as in the authors' release. Eq. 5's lambda acts on a mean over elements, also as in the release.

    Attributes:
      mean, std: statistics of each channel, on the 0-255 scale.
      channels: filters of the widest convolutions; the first ones have half as many.
      residual_channels: filters inside a residual block.
      residual_blocks: blocks in the encoder, and as many in the decoder.
      embedding_dim: d, the length of a codeword.
      augmentations: random changes of training images, names in `AUGMENTATIONS`, made in this order.
      dtype: type of the convolutions; parameters, codebooks and losses are float32.
    """

    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[Positive, Positive, Positive] = (127.5, 127.5, 127.5)
    channels: Annotated[int, Ge(2), Le(2**20)] = 128
    residual_channels: Width = 32
    residual_blocks: Annotated[int, Ge(0), Le(256)] = 2
    embedding_dim: Width = 64
    augmentations: tuple[Annotated[str, OneOf(AUGMENTATIONS)], ...] = ()
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"

    collapse_hint: ClassVar = "model.quantizer.neighborhood='hard' with init_count=1.0 and update_empty=True revives it"
    methods: ClassVar = ("encode", "decode", "reconstruct")

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """The quantiser layers by the names of their codebooks."""
        raise NotImplementedError

    @property
    def code_strides(self) -> dict[str, int]:
        """By codebook, by how much height and width shrink from the image to its codes."""
        raise NotImplementedError

    def normalize(self, images: jax.Array) -> jax.Array:
        """From uint8 [b, h, w, 3] to float32 on the normalised scale."""
        check_images(images)
        stride = max(self.code_strides.values())
        if any(size % stride or not size for size in images.shape[1:3]):
            raise InputError(
                f"images are {images.shape[1]} x {images.shape[2]}; "
                f"height and width must be multiples of {stride} for this model"
            )
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        return (images.astype(jnp.float32) - mean) / std

    def to_uint8(self, images: jax.Array) -> jax.Array:
        """From the normalised scale back to uint8, rounded."""
        return measures.to_uint8(images, jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32))

    def decode_quantized(self, quantized: Mapping[str, jax.Array]) -> jax.Array:
        """Images on the normalised scale, float32 [b, h, w, 3], from codewords by codebook, [b, h', w', d]."""
        raise NotImplementedError

    def encode(self, images: jax.Array) -> dict[str, jax.Array]:
        """Codes of uint8 images, by codebook: int32 [b, h', w'], or [b, h', w', q] of a quantiser with q codebooks."""
        return {name: out.codes for name, out in self(images).quantized.items()}

    def decode(self, codes: Mapping[str, jax.Array]) -> jax.Array:
        """Images uint8 [b, h, w, 3] from codes, by codebook: int32 [b, h', w'], as `encode` gives them."""
        quantized = {name: layer.lookup(codes[name]) for name, layer in self.quantizers.items()}
        return self.to_uint8(self.decode_quantized(quantized))

    def reconstruct(self, images: jax.Array) -> jax.Array:
        """Images uint8 [b, h, w, 3], encoded and decoded."""
        return self.to_uint8(self(images).images)

    def loss_and_metrics(self, batch: Batch, *, train: bool = True) -> LossAndMetrics:
        """|x - x_hat|^2, averaged, plus the quantisers' losses (Eq. 5), of uint8 images `image` [b, h, w, 3]."""
        images = batch["image"]
        if train and self.augmentations:
            images = augment(self.make_rng("augmentation"), images, self.augmentations)
        out = self(images, train=train)
        reconstruction_loss = jnp.mean(measures.squared_error(self.normalize(images), out.images))
        commitment_loss = sum(quantized.loss for quantized in out.quantized.values())
        loss = reconstruction_loss + commitment_loss
        metrics = {"loss": loss, "reconstruction_loss": reconstruction_loss, "commitment_loss": commitment_loss}
        for name, quantized in out.quantized.items():
            metrics[f"perplexity{suffix(name)}"] = quantized.perplexity
        counts = {name: quantized.counts for name, quantized in out.quantized.items()}
        statistics = {name: quantized.statistics for name, quantized in out.quantized.items()}
        return LossAndMetrics(loss, metrics, counts, statistics)

    def update_codebooks(self, statistics: Mapping[str, Any]) -> None:
        """Updates the (mutable) codebooks with a batch's statistics."""
        for name, layer in self.quantizers.items():
            layer.update(statistics[name])

    def batch_sums(self, batch: Batch) -> dict[str, Any]:
        """Sums over the examples of an evaluation batch: `examples`, losses, PSNR, and a sums of each codebook."""
        images, mask = batch["image"], batch["mask"]
        out = self(images, mask=mask)
        examples = jnp.sum(mask)
        psnr = measures.psnr(images, self.to_uint8(out.images))
        error = measures.squared_error(self.normalize(images), out.images)
        codebooks = {}
        for name, layer in self.quantizers.items():
            z = out.latents[name]
            positions = jnp.broadcast_to(mask[:, None, None], z.shape[:-1])
            codebooks[name] = layer.batch_sums(z, out.quantized[name], positions)
        return {
            "examples": examples,
            "psnr": jnp.sum(jnp.where(mask, psnr, 0)),
            "reconstruction_loss": jnp.sum(jnp.where(mask, error, 0)),
            "commitment_loss": sum(quantized.loss for quantized in out.quantized.values()) * examples,
            "codebooks": codebooks,
        }

    def compute_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Metrics of an evaluation from its sums (NumPy)."""
        metrics = {name: metric.value(sums) for name, metric in METRICS.items() if metric.value}
        for owner, layer in self.quantizers.items():
            for codebook, of_codebook in sums_by_codebook({owner: sums["codebooks"][owner]}).items():
                found = {
                    name + suffix(codebook): metric.value(of_codebook)
                    for name, metric in codebook_metrics(layer).items()
                }
                metrics |= found
        return metrics

    @property
    def metrics(self) -> dict[str, Metric]:
        """`METRICS`, and `codebook_metrics` of each codebook."""
        found = dict(METRICS)
        for codebook, layer in self.quantizers.items():
            for part in part_names(codebook, layer.n_codebooks):
                for name, metric in codebook_metrics(layer).items():
                    found[name + suffix(part)] = dataclasses.replace(metric, label=level(part))
        return found

    def extra_metrics(self, variables, samples):
        """Trustworthiness and neighbourhood preservation of each map, and PSNR in dB after a shift of all codes."""
        return inspection.measure(self, variables, samples["image"])

    def codebook_views(self, variables, samples):
        """One for each codebook."""
        return inspection.codebook_views(self, variables, samples["image"])

    def pictures(self, variables, samples, sums, step):
        """Reconstructions, and of each codebook its map, how often codes are used, and the U-matrix."""
        return inspection.pictures(self, variables, samples["image"], sums_by_codebook(sums["codebooks"]), step)
