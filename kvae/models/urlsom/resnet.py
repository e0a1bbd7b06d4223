"""ResNet for small images (He et al., 2016) with elu instead of relu, as in URL-SOM."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_conv = functools.partial(nn.Conv, use_bias=False, kernel_init=nn.initializers.he_normal())


class ResNet(nn.Module):
    """ResNet: images float [b, h, w, 3] -> features float32 [b, channels[-1]] after a global average pool.

    The network is a 3 x 3 convolution, then stages of `blocks` residual blocks with two 3 x 3 convolutions each. Each
    stage except the first halves height and width. Three stages of three blocks are ResNet-20, whose 20th layer is the
    linear layer after the pool. Shortcuts that change the width are 1 x 1 convolutions (option B of the paper), as in
    Keras' ResNet-20 for CIFAR-10. Unlike in Keras, convolutions have no biases, and batch normalisation has momentum
    0.9 and epsilon 1e-5 (Keras: 0.99 and 1e-3).

    Batch normalisation follows each 3 x 3 convolution. In training, it uses the mean and variance of the *global*
    batch, over all devices and both views. In evaluation, it uses the running averages in `batch_stats`.

    Attributes:
      channels: filters of each stage.
      blocks: residual blocks in each stage.
      dtype: dtype of the arithmetic; parameters and statistics are float32.
    """

    channels: tuple[int, ...]
    blocks: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Applies the network; `train` normalises with the statistics of the batch, else with running averages."""
        normalize = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        conv = functools.partial(_conv, dtype=self.dtype)
        x = nn.elu(normalize()(conv(self.channels[0], (3, 3))(x)))
        for stage, channels in enumerate(self.channels):
            for block in range(self.blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                y = nn.elu(normalize()(conv(channels, (3, 3), strides)(x)))
                y = normalize()(conv(channels, (3, 3))(y))
                if x.shape != y.shape:
                    x = conv(channels, (1, 1), strides)(x)
                x = nn.elu(x + y)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
