"""Describes the published PyTorch models: the names of their weights, and settings that the weights do not contain."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


def _vqvae_layers(blocks: int) -> dict[str, str]:
    layers = {"to_codeword_size": "_pre_vq_conv"}
    for part, convolutions in (("encoder", 3), ("decoder", 1)):
        layers |= {f"{part}.Conv_{i}": f"_{part}._conv_{i + 1}" for i in range(convolutions)}
        for i in range(blocks):
            layers |= _block(part, i, f"_{part}._residual_stack._layers.{i}._block")
    return layers | {f"decoder.TransposedConv_{i}": f"_decoder._conv_trans_{i + 1}" for i in range(2)}


def _vqvae2_layers(blocks: int) -> dict[str, str]:
    layers = {"upsample_top": "upsample_t"}
    layers |= {f"to_codeword_size_{level}": f"quantize_conv_{level[0]}" for level in ("top", "bottom")}
    # nn.Sequential also numbers layers without weights, such as ReLU.
    parts = {"encoder_bottom": ("enc_b", (0, 2, 4), ()), "encoder_top": ("enc_t", (0, 2), ())}
    parts |= {"decoder_top": ("dec_t", (0,), (2,)), "decoder": ("dec", (0,), (2, 4))}
    for part, (module, convolutions, transposed) in parts.items():
        layers |= {f"{part}.Conv_{i}": f"{module}.blocks.{index}" for i, index in enumerate(convolutions)}
        for i in range(blocks):
            layers |= _block(part, i, f"{module}.blocks.{convolutions[-1] + 1 + i}.conv")
        layers |= {
            f"{part}.TransposedConv_{i}": f"{module}.blocks.{blocks + index}" for i, index in enumerate(transposed)
        }
    return layers


def _block(part: str, number: int, module: str) -> dict[str, str]:
    return {f"{part}.ResidualBlock_{number}.Conv_{i}": f"{module}.{index}" for i, index in enumerate((1, 3))}


class Architecture(NamedTuple):
    """The layers of a published model.

    Attributes:
      model: Its name in `kvae.MODELS`.
      marker: A weight that only this architecture has.
      layers: Function of the number of residual blocks; maps each layer's path in kvae to its name in PyTorch.
      blocks: Regular expression that matches one weight of each residual block of an encoder.
      quantizers: Maps each quantiser's name in kvae to its name in PyTorch.
      size: Default edge of the images in pixels.
    """

    model: str
    marker: str
    layers: Callable[[int], dict[str, str]]
    blocks: str
    quantizers: Mapping[str, str]
    size: int


ARCHITECTURES = (
    Architecture(
        "vqvae",
        "_pre_vq_conv.weight",
        _vqvae_layers,
        r"_encoder\._residual_stack\._layers\.\d+\._block\.1\.weight",
        {"quantizer": "_vq_vae"},
        size=32,
    ),
    Architecture(
        "vqvae2",
        "quantize_conv_t.weight",
        _vqvae2_layers,
        r"enc_b\.blocks\.\d+\.conv\.1\.weight",
        {"quantizer_top": "quantize_t", "quantizer_bottom": "quantize_b"},
        size=256,
    ),
)
"""VQ-VAE of zalandoresearch/pytorch-vq-vae and VQ-VAE-2 of rosinality/vq-vae-2-pytorch; the release of
Irie et al. has the same layers."""


class Origin(NamedTuple):
    """The repository that a model comes from, recognised by the arrays of its quantiser.

    Attributes:
      quantizer: Name of the quantiser in `kvae.QUANTIZERS`.
      fields: Default fields of the quantiser.
      leaves: Maps each array of a codebook from its name in kvae to its name in PyTorch.
      transposed: True if the codewords are the columns of their array.
      statistics: Mean and std of the images on the 0-255 scale; None if they depend on the data set.
      crop: True if images keep their aspect ratio and are cropped at the centre.
    """

    quantizer: str
    fields: Mapping[str, Any]
    leaves: Mapping[str, str]
    transposed: bool = False
    statistics: tuple[float, float] | None = None
    crop: bool = True


AVERAGES = {"sums": "_ema_w", "counts": "_ema_cluster_size"}

ORIGINS = {
    "the release of Irie et al.": Origin(
        "kohonen", {"neighborhood": "hard"}, {"codewords": "_w", **AVERAGES, "step": "counter"}, crop=False
    ),
    "the release of Irie et al., by gradient descent": Origin(
        "gradient", {"neighborhood": "hard", "pull": "codeword"}, {"codewords": "w", "step": "counter"}, crop=False
    ),
    "rosinality": Origin(
        "kohonen",
        {"neighborhood": "none", "init_count": 0.0},
        {"codewords": "embed", "sums": "embed_avg", "counts": "cluster_size"},
        transposed=True,
        statistics=(127.5, 127.5),
    ),
    "zalandoresearch": Origin(
        "kohonen",
        {"neighborhood": "none", "init_count": 0.0},
        {"codewords": "_embedding.weight", **AVERAGES},
        statistics=(127.5, 255.0),
    ),
    "zalandoresearch, by gradient descent": Origin(
        "gradient", {"neighborhood": "none"}, {"codewords": "_embedding.weight"}, statistics=(127.5, 255.0)
    ),
}
"""Origins by name, tried in this order: the first one whose arrays are all present is used."""
