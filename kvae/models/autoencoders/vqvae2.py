"""VQ-VAE-2 (Razavi et al., 2019) with two levels, as Irie et al. (2023) train it on images of 256 x 256."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from kvae.models.autoencoders.autoencoder import Autoencoder, Reconstruction
from kvae.models.autoencoders.layers import Conv, Decoder, Encoder, TransposedConv
from kvae.models.model import DTYPES
from kvae.quantizers.base import Quantizer


class VQVAE2(Autoencoder):
    """VQ-VAE-2: images [b, h, w, 3] -> codes `top` [b, h/8, w/8] and `bottom` [b, h/4, w/4] -> images.

    The input of the bottom quantiser depends on the bottom features and on the decoded top level.

    Example:
      >>> import jax, jax.numpy as jnp, kvae
      >>> from kvae.models import VQVAE2
      >>> top, bottom = kvae.KohonenVQ((4, 4)), kvae.KohonenVQ((4, 8))
      >>> model = VQVAE2(channels=8, residual_channels=4, residual_blocks=1, quantizer_top=top, quantizer_bottom=bottom)
      >>> images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
      >>> variables = model.init(jax.random.key(0), images)
      >>> codes = model.apply(variables, images, method="encode")
      >>> codes["top"].shape, codes["bottom"].shape
      ((2, 4, 4), (2, 8, 8))

    Attributes:
      quantizer_top, quantizer_bottom: the quantiser layers; their codebooks are named `top` and `bottom`.
    """

    quantizer_top: Quantizer | None = None
    quantizer_bottom: Quantizer | None = None

    code_strides: ClassVar[dict[str, int]] = {"top": 8, "bottom": 4}

    def setup(self) -> None:
        shape = dict(
            channels=self.channels,
            residual_channels=self.residual_channels,
            residual_blocks=self.residual_blocks,
            rectified=False,
            dtype=DTYPES[self.dtype],
        )
        self.encoder_bottom = Encoder(num_downsamples=2, **shape)
        self.encoder_top = Encoder(num_downsamples=1, **shape)
        self.to_codeword_size_top = Conv(self.embedding_dim, 1, dtype=shape["dtype"])
        self.to_codeword_size_bottom = Conv(self.embedding_dim, 1, dtype=shape["dtype"])
        self.decoder_top = Decoder(features=self.embedding_dim, num_upsamples=1, **shape)
        self.upsample_top = TransposedConv(self.embedding_dim, shape["dtype"])
        self.decoder = Decoder(features=3, num_upsamples=2, **shape)

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """The quantiser layers, by the names of their codebooks."""
        return {"top": self.quantizer_top, "bottom": self.quantizer_bottom}

    def __call__(self, images: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> Reconstruction:
        """Encodes, quantises and decodes images, see `VQVAE.__call__`."""

        def positions(z: jax.Array) -> jax.Array | None:
            return None if mask is None else jnp.broadcast_to(mask[:, None, None], z.shape[:-1])

        features_bottom = self.encoder_bottom(self.normalize(images))
        z_top = self.to_codeword_size_top(self.encoder_top(features_bottom))
        top = self.quantizer_top.quantize(z_top, train=train, mask=positions(z_top))
        features_bottom = jnp.concatenate([self.decoder_top(top.quantized), features_bottom], axis=-1)
        z_bottom = self.to_codeword_size_bottom(features_bottom)
        bottom = self.quantizer_bottom.quantize(z_bottom, train=train, mask=positions(z_bottom))
        decoded = self.decode_quantized({"top": top.quantized, "bottom": bottom.quantized})
        return Reconstruction(decoded, {"top": z_top, "bottom": z_bottom}, {"top": top, "bottom": bottom})

    def decode_quantized(self, quantized: Mapping[str, jax.Array]) -> jax.Array:
        """Decodes codewords to images on the normalised scale, float32 [b, h, w, 3].

        Args:
          quantized: `top` [b, h/8, w/8, d] and `bottom` [b, h/4, w/4, d].
        """
        top = self.upsample_top(quantized["top"])
        bottom = quantized["bottom"].astype(top.dtype)
        return self.decoder(jnp.concatenate([top, bottom], axis=-1)).astype(jnp.float32)
