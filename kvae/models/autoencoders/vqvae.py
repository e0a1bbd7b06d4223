"""VQ-VAE (van den Oord et al., 2017), as Irie et al. (2023) train it on CIFAR-10."""

from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le

from kvae.models.autoencoders.base import Autoencoder, Reconstruction
from kvae.models.autoencoders.layers import Conv, Decoder, Encoder
from kvae.quantizers.base import Quantizer


class VQVAE(Autoencoder):
    """Images [b, h, w, 3] -> codes [b, h/4, w/4] of one codebook -> images.

    Attributes:
      num_downsamples: how many times height and width are halved; 2 makes codes of a quarter of each, as above.
      quantizer: the quantiser layer; its codebook is named `codebook`.
    """

    num_downsamples: Annotated[int, Ge(1), Le(8)] = 2
    quantizer: Quantizer | None = None

    def setup(self):
        shape = dict(
            channels=self.channels,
            residual_channels=self.residual_channels,
            residual_blocks=self.residual_blocks,
            rectified=True,
            dtype=self.dtype,
        )
        self.encoder = Encoder(num_downsamples=self.num_downsamples, **shape)
        self.to_codeword_size = Conv(self.embedding_dim, 1, dtype=self.dtype)
        self.decoder = Decoder(features=3, num_upsamples=self.num_downsamples, **shape)

    @property
    def code_strides(self):
        """By codebook, by how much height and width shrink."""
        return {"codebook": 2**self.num_downsamples}

    @property
    def quantizers(self):
        """The quantiser by the name of its codebook."""
        return {"codebook": self.quantizer}

    def __call__(self, images: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> Reconstruction:
        """Encodes, quantises and decodes uint8 images [b, h, w, 3]; `mask` [b] leaves images out of the statistics."""
        z = self.to_codeword_size(self.encoder(self.normalize(images)))
        positions = None if mask is None else jnp.broadcast_to(mask[:, None, None], z.shape[:-1])
        out = self.quantizer.quantize(z, train=train, mask=positions)
        return Reconstruction(self.decode_quantized({"codebook": out.quantized}), {"codebook": z}, {"codebook": out})

    def decode_quantized(self, quantized: Mapping[str, jax.Array]) -> jax.Array:
        """Images on the normalised scale, float32 [b, h, w, 3], from codewords `codebook` [b, h', w', d]."""
        return self.decoder(quantized["codebook"]).astype(jnp.float32)
