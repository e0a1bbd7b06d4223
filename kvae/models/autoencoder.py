"""What VQ-VAE and VQ-VAE-2 share: normalisation, objective, and the totals of an evaluation."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kvae import measures
from kvae.errors import InputError
from kvae.kohonen import Statistics
from kvae.models.layers import check_images
from kvae.models.objective import Objective
from kvae.models.quantizers import GradientVQ, KohonenVQ, Quantized


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


class Autoencoder(nn.Module):
    """The part of a VQ-VAE that does not depend on its layers. Abstract: see `VQVAE` and `VQVAE2`.

    Images go in and come out as uint8 [b, h, w, 3]; inside they are (x - mean) / std, and losses are measured on that
    scale, as in the authors' release.

    Attributes:
      mean, std: of each channel, on the 0-255 scale.
      channels, residual_channels, residual_blocks: widths and depth of encoder and decoder.
      codeword_size: d.
      dtype: of the convolutions; parameters, codebooks and losses are float32.
    """

    mean: tuple[float, ...] = (127.5, 127.5, 127.5)
    std: tuple[float, ...] = (127.5, 127.5, 127.5)
    channels: int = 128
    residual_channels: int = 32
    residual_blocks: int = 2
    codeword_size: int = 64
    dtype: Any = jnp.float32

    needs_whole_batch: ClassVar = False
    tallies_train: ClassVar = False
    remedy: ClassVar = "model.neighborhood='hard' with init_count=1.0 and update_empty=True revives it"

    @property
    def quantizers(self) -> dict[str, KohonenVQ | GradientVQ]:
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

    def encode(self, images: jax.Array) -> dict[str, jax.Array]:
        """Codes of uint8 images, by codebook: int32 [b, h', w']."""
        return {name: out.codes for name, out in self(images).quantized.items()}

    def decode(self, codes: Mapping[str, jax.Array]) -> jax.Array:
        """Images uint8 [b, h, w, 3] from codes, by codebook: int32 [b, h', w']."""
        quantized = {name: layer.codewords()[codes[name]] for name, layer in self.quantizers.items()}
        return self.to_uint8(self.decode_quantized(quantized))

    def reconstruct(self, images: jax.Array) -> jax.Array:
        """Images uint8 [b, h, w, 3], encoded and decoded."""
        return self.to_uint8(self(images).images)

    def update_codebooks(self, statistics: Mapping[str, Statistics]) -> None:
        """Updates the (mutable) codebooks with a batch's statistics."""
        for name, layer in self.quantizers.items():
            layer.update(statistics[name])

    def objective(self, images: jax.Array) -> Objective:
        """|x - x_hat|^2, averaged, plus the quantisers' losses (Eq. 5), of a training batch of uint8 images."""
        out = self(images, train=True)
        reconstruction_loss = jnp.mean(measures.squared_error(self.normalize(images), out.images))
        commitment_loss = sum(quantized.loss for quantized in out.quantized.values())
        loss = reconstruction_loss + commitment_loss
        metrics = {"loss": loss, "reconstruction_loss": reconstruction_loss, "commitment_loss": commitment_loss}
        for name, quantized in out.quantized.items():
            metrics[f"perplexity{suffix(name)}"] = quantized.perplexity
        statistics = {name: quantized.statistics for name, quantized in out.quantized.items()}
        counts = {name: of_codebook.counts for name, of_codebook in statistics.items()}
        return Objective(loss, metrics, counts, statistics)

    def totals(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Sums over the examples of an evaluation batch, to be added up over batches and read by `summarize`.

        Args:
          batch: `image` uint8 [b, h, w, 3] and `mask` bool [b], False for padding.
        """
        images, mask = batch["image"], batch["mask"]
        out = self(images, mask=mask)
        examples = jnp.sum(mask)
        psnr = measures.psnr(images, self.to_uint8(out.images))
        error = measures.squared_error(self.normalize(images), out.images)
        totals = {
            "examples": examples,
            "psnr": jnp.sum(jnp.where(mask, psnr, 0)),
            "reconstruction_loss": jnp.sum(jnp.where(mask, error, 0)),
            "commitment_loss": sum(quantized.loss for quantized in out.quantized.values()) * examples,
        }
        for name, layer in self.quantizers.items():
            z, codewords = out.latents[name], layer.codewords()
            positions = jnp.broadcast_to(mask[:, None, None], z.shape[:-1])
            distance = jnp.sqrt(jnp.sum(jnp.square(z.astype(jnp.float32) - codewords[out.quantized[name].codes]), -1))
            totals[f"counts{suffix(name)}"] = out.quantized[name].statistics.counts
            totals[f"quantization_error{suffix(name)}"] = jnp.sum(jnp.where(positions, distance, 0))
            for neighbors in (4, 8):
                totals[f"topographic_error_{neighbors}{suffix(name)}"] = measures.topographic_errors(
                    z, codewords, tuple(layer.grid_shape), neighbors, positions
                )
        return totals

    def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics of an evaluation from its totals (NumPy): means over examples or positions, pooled code counts."""
        metrics = {
            name: float(totals[name] / totals["examples"])
            for name in ("reconstruction_loss", "commitment_loss", "psnr")
        }
        metrics["loss"] = metrics["reconstruction_loss"] + metrics["commitment_loss"]
        for name in self.quantizers:
            counts = totals[f"counts{suffix(name)}"]
            metrics[f"perplexity{suffix(name)}"] = float(measures.perplexity(counts))
            metrics[f"codes_used{suffix(name)}"] = int(np.count_nonzero(counts))
            for measure in ("quantization_error", "topographic_error_4", "topographic_error_8"):
                metrics[measure + suffix(name)] = float(totals[measure + suffix(name)] / counts.sum())
        return metrics


def suffix(codebook: str) -> str:
    """What a metric's name ends in: nothing where there is one codebook, else `_top` or `_bottom`."""
    return "" if codebook == "codebook" else f"_{codebook}"
