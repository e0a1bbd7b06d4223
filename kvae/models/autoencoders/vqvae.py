"""VQ-VAE (van den Oord et al., 2017), as Irie et al. (2023) train it on CIFAR-10."""

from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le

from kvae.models.autoencoders.autoencoder import Autoencoder, Reconstruction
from kvae.models.autoencoders.layers import Conv, Decoder, Encoder
from kvae.models.model import DTYPES
from kvae.quantizers.base import Quantizer


class VQVAE(Autoencoder):
    """VQ-VAE: images [b, h, w, 3] -> codes [b, h/4, w/4] of one codebook -> images.

    Example:
      >>> import jax, jax.numpy as jnp, kvae
      >>> from kvae.models import VQVAE
      >>> model = VQVAE(channels=8, residual_channels=4, residual_blocks=1, quantizer=kvae.KohonenVQ((4, 8)))
      >>> images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
      >>> variables = model.init(jax.random.key(0), images)
      >>> codes = model.apply(variables, images, method="encode")
      >>> codes["codebook"].shape
      (2, 8, 8)
      >>> model.apply(variables, codes, method="decode").shape
      (2, 32, 32, 3)

    Attributes:
      num_downsamples: number of times that height and width are halved; for 2, codes are [b, h/4, w/4].
      quantizer: the quantiser layer; its codebook is named `codebook`.
    """

    num_downsamples: Annotated[int, Ge(1), Le(8)] = 2
    quantizer: Quantizer | None = None

    def setup(self) -> None:
        shape = dict(
            channels=self.channels,
            residual_channels=self.residual_channels,
            residual_blocks=self.residual_blocks,
            rectified=True,
            dtype=DTYPES[self.dtype],
        )
        self.encoder = Encoder(num_downsamples=self.num_downsamples, **shape)
        self.to_codeword_size = Conv(self.embedding_dim, 1, dtype=shape["dtype"])
        self.decoder = Decoder(features=3, num_upsamples=self.num_downsamples, **shape)

    @property
    def code_strides(self) -> dict[str, int]:
        """Height and width, in pixels, of the area that one code covers, by quantiser."""
        return {"codebook": 2**self.num_downsamples}

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """The quantiser layer, by the name of its codebook."""
        return {"codebook": self.quantizer}

    def __call__(self, images: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> Reconstruction:
        """Encodes, quantises and decodes images; codebooks do not change.

        Args:
          images: uint8 [b, h, w, 3].
          train: passed to the quantiser.
          mask: bool [b]; images where it is False are excluded from the quantiser's loss, counts and statistics.

        Returns:
          The reconstructed images, the latents and the quantiser's output.
        """
        z = self.to_codeword_size(self.encoder(self.normalize(images)))
        positions = None if mask is None else jnp.broadcast_to(mask[:, None, None], z.shape[:-1])
        out = self.quantizer.quantize(z, train=train, mask=positions)
        return Reconstruction(self.decode_quantized({"codebook": out.quantized}), {"codebook": z}, {"codebook": out})

    def decode_quantized(self, quantized: Mapping[str, jax.Array]) -> jax.Array:
        """Decodes codewords `codebook` [b, h', w', d] to images on the normalised scale, float32 [b, h, w, 3]."""
        return self.decoder(quantized["codebook"]).astype(jnp.float32)
