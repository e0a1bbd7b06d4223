"""The base class of VQ-VAE and VQ-VAE-2: normalisation, loss, evaluation sums and metrics."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le
from flax import struct

from kvae import measures
from kvae.core.errors import InputError
from kvae.core.fields import Channels, OneOf, Positive, fields_of
from kvae.core.image_arrays import check_images
from kvae.models.autoencoders import inspection
from kvae.models.autoencoders.augmentations import AUGMENTATIONS, augment
from kvae.models.codebook_views import CodebookView, codebook_label, codebook_names, metric_suffix, sums_by_codebook
from kvae.models.model import DTYPES, Batch, LossAndMetrics, Metric, Model
from kvae.quantizers.base import Quantized, Quantizer


@struct.dataclass
class Reconstruction:
    """The output of an autoencoder, in training and in evaluation.

    Attributes:
      images: reconstructions on the normalised scale, float32 [b, h, w, 3].
      latents: the input z of each quantiser, float [b, h', w', d], by name.
      quantized: the output of each quantiser, by name.
    """

    images: jax.Array
    latents: Mapping[str, jax.Array]
    quantized: Mapping[str, Quantized]


def _mean(name: str) -> Callable[[Mapping[str, Any]], float]:
    """Returns a function that divides the sum `name` by the number of examples."""
    return lambda sums: float(sums[name] / sums["examples"])


def _per_position(name: str) -> Callable[[Mapping[str, Any]], float]:
    """Returns a function that divides the sum `name` by the number of codes."""
    return lambda sums: float(sums[name] / sums["counts"].sum())


LOSS_PANEL = ("Losses", "mean squared error")

RECONSTRUCTION_METRICS = {
    "loss": Metric(lambda sums: _mean("reconstruction_loss")(sums) + _mean("commitment_loss")(sums), better=min),
    "reconstruction_loss": Metric(_mean("reconstruction_loss"), panel=LOSS_PANEL, label="reconstruction"),
    "commitment_loss": Metric(_mean("commitment_loss"), panel=LOSS_PANEL, label="commitment"),
    "psnr": Metric(
        _mean("psnr"), panel=("Reconstruction quality", "PSNR (dB)"), column="PSNR (dB)", decimals=1, better=max
    ),
    "perturbation_psnr_1": Metric(column="PSNR, codes moved by 1 (dB)", decimals=1),
    "bit_error_psnr": Metric(column="PSNR, 1% bit errors (dB)", decimals=1),
}
"""Metrics of the model, computed from its sums; `inspection.extra_metrics` computes the last two."""

CODEBOOK_METRICS = {
    "perplexity": Metric(
        lambda sums: float(measures.perplexity(sums["counts"])),
        pooled=True,
        panel=("Codebook perplexity", "effective number of codes"),
        column="perplexity",
        decimals=0,
    ),
    "codes_used": Metric(
        lambda sums: int(np.count_nonzero(sums["counts"])),
        pooled=True,
        panel=("Codes in use", "codes used at least once"),
        column="codes used",
        total="vectors",
        decimals=0,
    ),
    "vectors": Metric(lambda sums: int(sums["counts"].sum()), pooled=True, decimals=0),
    "quantization_error": Metric(_per_position("quantization_error")),
}
"""Metrics of each codebook, computed from the sums of `Quantizer.batch_sums`."""

LIMITED_BY_CODES = ("perplexity", "codes_used")
"""Metrics of a codebook that the number of its codes limits."""


REVIVING = {"neighborhood": "hard", "init_count": 1.0, "update_empty": True}
"""Values of a quantiser's fields that bring unused codes back into use."""


def _collapse_hint(path: str, layer: Quantizer) -> str:
    """Returns advice to set the `REVIVING` fields of a layer or of its inner layer; empty if that would not help."""
    fields = fields_of(type(layer))
    if inner := [name for name, field in fields.items() if field.section]:
        return _collapse_hint(f"{path}.{inner[0]}", getattr(layer, inner[0]))
    reviving = {name: value for name, value in REVIVING.items() if name in fields}
    if "neighborhood" not in reviving or all(getattr(layer, name) == value for name, value in reviving.items()):
        return ""
    settings = ", ".join(f"{name}={value!r}" for name, value in reviving.items())
    return f"set {path}.{settings} to bring unused codes back into use"


def _of_codebook(codebook: str, compute: Callable) -> Callable[[Mapping[str, Any]], float]:
    """Returns a function that computes a metric of one codebook from the sums of the model."""
    return lambda sums: compute(sums_by_codebook(sums["codebooks"])[codebook])


def codebook_metrics(layer: Quantizer) -> dict[str, Metric]:
    """Returns `CODEBOOK_METRICS` and, if the layer has a grid, a topographic error for each adjacency of the grid."""
    metrics = dict(CODEBOOK_METRICS)
    for number, adjacency in enumerate(layer.grid.adjacency if layer.grid else ()):
        name = f"topographic_error_{adjacency}"
        metrics[name] = Metric(_per_position(name), column=None if number else "topographic error")
    return metrics


class Autoencoder(Model):
    """Abstract base class of `VQVAE` and `VQVAE2`, which add the layers.

    The loss is Eq. 5 of Irie et al. (2023), with x and x_hat = (image - mean) / std:

        mean |x - x_hat|^2 + commitment_weight * mean |sg(w_code) - z|^2

    Both means are over all elements, on the normalised scale, as in the authors' release. Input and output images are
    uint8 [b, h, w, 3]. Subclasses define `setup`, `__call__`, `quantizers`, `code_strides` and `decode_quantized`.

    Attributes:
      mean, std: mean and standard deviation of each channel, on the 0-255 scale.
      channels: filters of the widest convolutions; the first convolutions have half as many.
      residual_channels: filters inside a residual block.
      residual_blocks: number of residual blocks in the encoder, and in the decoder.
      embedding_dim: d, the dimension of a codeword.
      augmentations: augmentations of training images, names in `AUGMENTATIONS`, applied in the given order.
      dtype: dtype of the convolutions; parameters, codebooks and losses are float32.
    """

    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[Positive, Positive, Positive] = (127.5, 127.5, 127.5)
    channels: Annotated[int, Ge(2), Le(2**20)] = 128
    residual_channels: Channels = 32
    residual_blocks: Annotated[int, Ge(0), Le(256)] = 2
    embedding_dim: Channels = 64
    augmentations: tuple[Annotated[str, OneOf(AUGMENTATIONS)], ...] = ()
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"

    methods: ClassVar = ("encode", "decode", "reconstruct")

    @property
    def collapse_hint(self) -> str:
        """Advice to set fields of the first quantiser or, if that would not help, to lower the learning rate."""
        return _collapse_hint("model.quantizer", next(iter(self.quantizers.values()))) or Model.collapse_hint

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """The quantiser layers, by the names of their codebooks."""
        raise NotImplementedError

    @property
    def code_strides(self) -> dict[str, int]:
        """Height and width, in pixels, of the area that one code covers, by quantiser."""
        raise NotImplementedError

    @property
    def mean_and_std(self) -> tuple[jax.Array, jax.Array]:
        """`mean` and `std` as float32 [1, 1, 1, 3], to broadcast over images."""
        return jnp.float32(self.mean).reshape(1, 1, 1, 3), jnp.float32(self.std).reshape(1, 1, 1, 3)

    def normalize(self, images: jax.Array) -> jax.Array:
        """Returns (images - mean) / std, float32, from uint8 [b, h, w, 3].

        Raises:
          InputError: the images have another shape or dtype, or their size is not a multiple of the model's strides.
        """
        check_images("images", images)
        stride = max(self.code_strides.values())
        if any(size % stride or not size for size in images.shape[1:3]):
            raise InputError(
                f"images are {images.shape[1]} x {images.shape[2]}; "
                f"height and width must be multiples of {stride} for this model"
            )
        mean, std = self.mean_and_std
        return (images.astype(jnp.float32) - mean) / std

    def to_uint8(self, images: jax.Array) -> jax.Array:
        """Maps images on the normalised scale back to uint8, rounded and clipped."""
        return measures.to_uint8(images, *self.mean_and_std)

    def decode_quantized(self, quantized: Mapping[str, jax.Array]) -> jax.Array:
        """Decodes codewords by quantiser, [b, h', w', d], to images on the normalised scale, float32 [b, h, w, 3]."""
        raise NotImplementedError

    def encode(self, images: jax.Array) -> dict[str, jax.Array]:
        """Encodes uint8 images [b, h, w, 3].

        Returns:
          The codes of each quantiser: int32 [b, h', w'], or [b, h', w', q] for one with q codebooks.
        """
        return {name: out.codes for name, out in self(images).quantized.items()}

    def decode(self, codes: Mapping[str, jax.Array]) -> jax.Array:
        """Decodes codes, as `encode` returns them, to images uint8 [b, h, w, 3]."""
        quantized = {name: layer.lookup(codes[name]) for name, layer in self.quantizers.items()}
        return self.to_uint8(self.decode_quantized(quantized))

    def reconstruct(self, images: jax.Array) -> jax.Array:
        """Encodes and decodes images, uint8 [b, h, w, 3]."""
        return self.to_uint8(self(images).images)

    def loss_and_metrics(self, batch: Batch, *, train: bool = True) -> LossAndMetrics:
        """Returns Eq. 5 for the images `image`, uint8 [b, h, w, 3]; `mask` is ignored, so all images count."""
        images = batch["image"]
        if train and self.augmentations:
            images = augment(self.make_rng("augmentation"), images, self.augmentations)
        out = self(images, train=train)
        reconstruction_loss = jnp.mean(measures.squared_error(self.normalize(images), out.images))
        commitment_loss = sum(quantized.loss for quantized in out.quantized.values())
        loss = reconstruction_loss + commitment_loss
        metrics = {"loss": loss, "reconstruction_loss": reconstruction_loss, "commitment_loss": commitment_loss}
        for name, quantized in out.quantized.items():
            metrics[f"perplexity{metric_suffix(name)}"] = quantized.perplexity
        counts = {name: quantized.counts for name, quantized in out.quantized.items()}
        statistics = {name: quantized.statistics for name, quantized in out.quantized.items()}
        return LossAndMetrics(loss, metrics, counts, statistics)

    def update_codebooks(self, statistics: Mapping[str, Any]) -> None:
        """Updates the collection `codebook` with the statistics of a whole batch, by quantiser."""
        for name, layer in self.quantizers.items():
            layer.update(statistics[name])

    def batch_sums(self, batch: Batch) -> dict[str, Any]:
        """Returns sums over the unmasked examples of an evaluation batch.

        Returns:
          `examples` [], `psnr` [], `reconstruction_loss` [], `commitment_loss` [] and, in `codebooks`, the sums of each
          quantiser (see `Quantizer.batch_sums`).
        """
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
            "commitment_loss": sum(quantized.loss for quantized in out.quantized.values()) * jnp.float32(examples),
            "codebooks": codebooks,
        }

    def compute_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics of an evaluation from its sums (NumPy)."""
        return self.declared_metrics(sums)

    @property
    def metrics(self) -> dict[str, Metric]:
        """`RECONSTRUCTION_METRICS`, and the `codebook_metrics` of each codebook."""
        metrics = dict(RECONSTRUCTION_METRICS)
        for quantizer, layer in self.quantizers.items():
            for codebook in codebook_names(quantizer, layer.n_codebooks):
                suffix, label = metric_suffix(codebook), codebook_label(codebook)
                for name, metric in codebook_metrics(layer).items():
                    compute, total = _of_codebook(codebook, metric.compute), metric.total and metric.total + suffix
                    size = layer.codebook_size if name in LIMITED_BY_CODES else None
                    metrics[name + suffix] = dataclasses.replace(
                        metric, compute=compute, label=label, total=total, size=size
                    )
        return metrics

    def extra_metrics(self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns measures of the order of each map, and the PSNR in dB after all codes are shifted."""
        return inspection.extra_metrics(self, variables, samples["image"])

    def codebook_views(
        self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray]
    ) -> dict[str, CodebookView]:
        """Returns a view of each codebook."""
        return inspection.codebook_views(self, variables, samples["image"])

    def pictures(
        self, variables: Mapping[str, Any], samples: Mapping[str, np.ndarray], sums: Mapping[str, Any], step: int
    ) -> dict[str, Callable[[pathlib.Path], None]]:
        """Returns functions that draw reconstructions and, for each codebook, its map, hit map and U-matrix."""
        return inspection.pictures(self, variables, samples["image"], sums_by_codebook(sums["codebooks"]), step)
