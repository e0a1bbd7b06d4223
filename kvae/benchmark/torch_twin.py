"""VQ-VAE and VQ-VAE-2 in plain PyTorch, with the same weights, loss and update as kvae's models.

Written for comparison only. Functions take parameters by the names of kvae's layers, such as `encoder.Conv_0.kernel`,
in PyTorch's layout.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

Arrays = dict[str, torch.Tensor]

EPSILON = 1e-5
"""The pseudo-count of `kvae.kohonen`."""


def convolve(params: Arrays, name: str, x: torch.Tensor) -> torch.Tensor:
    """Applies a convolution; its stride is 2 if its kernel is 4 x 4."""
    kernel = params[f"{name}.kernel"]
    stride, padding = (2, 1) if kernel.shape[-1] == 4 else (1, kernel.shape[-1] // 2)
    return functional.conv2d(x, kernel, params.get(f"{name}.bias"), stride, padding)


def convolve_transposed(params: Arrays, name: str, x: torch.Tensor) -> torch.Tensor:
    """Applies a 4 x 4 transposed convolution of stride 2."""
    return functional.conv_transpose2d(x, params[f"{name}.kernel"], params[f"{name}.bias"], 2, 1)


def _count(params: Arrays, prefix: str) -> int:
    return sum(name.startswith(prefix) and name.endswith(".kernel") for name in params)


def _residual_blocks(params: Arrays, name: str, x: torch.Tensor, rectified: bool) -> torch.Tensor:
    for i in range(_count(params, f"{name}.ResidualBlock_") // 2):
        block = f"{name}.ResidualBlock_{i}"
        y = functional.relu(x)
        residual = convolve(params, f"{block}.Conv_1", functional.relu(convolve(params, f"{block}.Conv_0", y)))
        x = (y if rectified else x) + residual
    return functional.relu(x)


def encode(params: Arrays, name: str, x: torch.Tensor, rectified: bool) -> torch.Tensor:
    """Applies an `Encoder`."""
    last = _count(params, f"{name}.Conv_") - 1
    for i in range(last):
        x = functional.relu(convolve(params, f"{name}.Conv_{i}", x))
    return _residual_blocks(params, name, convolve(params, f"{name}.Conv_{last}", x), rectified)


def decode(params: Arrays, name: str, x: torch.Tensor, rectified: bool) -> torch.Tensor:
    """Applies a `Decoder`."""
    x = _residual_blocks(params, name, convolve(params, f"{name}.Conv_0", x), rectified)
    last = _count(params, f"{name}.TransposedConv_") - 1
    for i in range(last):
        x = functional.relu(convolve_transposed(params, f"{name}.TransposedConv_{i}", x))
    return convolve_transposed(params, f"{name}.TransposedConv_{last}", x)


class Codebook:
    """A codebook with moving averages and a hard neighbourhood, or none.

    Args:
      state: The leaves of kvae's collection `codebook`.
      near: Bool [K, K], True for different nodes within the radius; all False for EMA-VQ.
      fields: The quantiser's fields `decay`, `commitment_weight`, `initial_width`, `lowest_width` and `shrink_step`.
    """

    def __init__(self, state: dict[str, np.ndarray], near: np.ndarray, fields: dict[str, Any]):
        self.codewords, self.sums, self.counts = (torch.tensor(state[name]) for name in ("codewords", "sums", "counts"))
        self.step, self.near, self.fields = int(state["step"]), torch.tensor(near, dtype=torch.float32), fields

    def neighbor_weight(self) -> torch.Tensor:
        """Returns min(1, width^2), float32 []."""
        width = self.fields["initial_width"] / (1 + self.step * self.fields["shrink_step"]) ** 0.5
        return torch.tensor(min(1.0, max(width, self.fields["lowest_width"]) ** 2))


def quantize(codewords: torch.Tensor, commitment_weight: float, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Quantises features [b, d, h, w]; returns straight-through features, loss, and the sums and counts of codes."""
    b, d, h, w = z.shape
    z = z.permute(0, 2, 3, 1).reshape(-1, d)
    with torch.no_grad():
        codes = torch.argmin(codewords.square().sum(1) / 2 - z @ codewords.T, dim=1)
        sums = torch.zeros_like(codewords).index_add(0, codes, z)
        counts = torch.zeros(len(codewords)).index_add(0, codes, torch.ones(len(z)))
    nearest = codewords[codes]
    loss = commitment_weight * functional.mse_loss(z, nearest)
    quantized = (z + (nearest - z).detach()).reshape(b, h, w, d).permute(0, 3, 1, 2)
    return quantized, loss, sums, counts


def update(
    codewords: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor, near: torch.Tensor, weight: torch.Tensor,
    decay: float, batch_sums: torch.Tensor, batch_counts: torch.Tensor,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Returns codewords, sums and counts after the update of `kvae.kohonen.update_codebook`."""
    sums = decay * sums + (1 - decay) * (batch_sums + weight * (near @ batch_sums))
    counts = decay * counts + (1 - decay) * (batch_counts + weight * (near @ batch_counts))
    total = counts.sum()
    counts = (counts + EPSILON) / (total + len(counts) * EPSILON) * total
    return sums / counts[:, None], sums, counts


def losses(
    params: Arrays, codewords: list[torch.Tensor], weights: list[float], images: torch.Tensor,
    mean: torch.Tensor, std: torch.Tensor,
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:  # fmt: skip
    """Returns the loss of images, uint8 [b, 3, h, w], and the sums and counts of each codebook."""
    x = (images.float() - mean) / std
    if len(codewords) == 1:
        z = convolve(params, "to_codeword_size", encode(params, "encoder", x, True))
        quantized, loss, *statistics = quantize(codewords[0], weights[0], z)
        return functional.mse_loss(decode(params, "decoder", quantized, True), x) + loss, [tuple(statistics)]
    features = encode(params, "encoder_bottom", x, False)
    z = convolve(params, "to_codeword_size_top", encode(params, "encoder_top", features, False))
    top, top_loss, *top_statistics = quantize(codewords[0], weights[0], z)
    features = torch.cat([decode(params, "decoder_top", top, False), features], 1)
    z = convolve(params, "to_codeword_size_bottom", features)
    bottom, bottom_loss, *bottom_statistics = quantize(codewords[1], weights[1], z)
    joined = torch.cat([convolve_transposed(params, "upsample_top", top), bottom], 1)
    loss = functional.mse_loss(decode(params, "decoder", joined, False), x) + top_loss + bottom_loss
    return loss, [tuple(top_statistics), tuple(bottom_statistics)]


class TwinStep:
    """A training step in PyTorch: loss, gradients, Adam, and the update of the codebooks.

    Args:
      setup: `params` by name, `codebooks` as arguments of `Codebook`, `images` uint8 [b, h, w, 3], and the values
        `mean`, `std`, `learning_rate`, `clip_norm`, `channels_last` and `is_compiled`.
    """

    def __init__(self, setup: dict[str, Any]):
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        layout = torch.channels_last if setup["channels_last"] else torch.contiguous_format
        compiled: Callable = torch.compile if setup["is_compiled"] else lambda function: function
        self.losses, self.update = compiled(losses), compiled(update)
        self.params = {
            name: torch.tensor(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
            for name, value in setup["params"].items()
        }
        for name, value in self.params.items():
            self.params[name] = value.contiguous(memory_format=layout if value.ndim == 4 else torch.contiguous_format)
            self.params[name].requires_grad_()
        self.codebooks = [Codebook(*arguments) for arguments in setup["codebooks"]]
        self.images = torch.tensor(setup["images"]).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        self.mean, self.std = (
            torch.tensor(setup[name], dtype=torch.float32).reshape(1, 3, 1, 1) for name in ("mean", "std")
        )
        self.clip_norm = setup["clip_norm"]
        self.optimizer = torch.optim.Adam(self.params.values(), lr=setup["learning_rate"], fused=True)

    def advance(self) -> float:
        """Runs one step; returns the loss before it."""
        codewords = [codebook.codewords for codebook in self.codebooks]
        weights = [codebook.fields["commitment_weight"] for codebook in self.codebooks]
        loss, statistics = self.losses(self.params, codewords, weights, self.images, self.mean, self.std)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.params.values(), self.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            for codebook, sums_and_counts in zip(self.codebooks, statistics, strict=True):
                codebook.codewords, codebook.sums, codebook.counts = self.update(
                    codebook.codewords, codebook.sums, codebook.counts, codebook.near, codebook.neighbor_weight(),
                    codebook.fields["decay"], *sums_and_counts,
                )  # fmt: skip
                codebook.step += 1
        return float(loss.detach())


def serve(setup: dict[str, Any], pipe: Any) -> None:
    """Runs as many steps as each received number says; sends the seconds per step and the first loss."""
    step = TwinStep(setup)
    while True:
        try:
            count = pipe.recv()
        except EOFError:  # kvae's process has ended
            return
        started = time.perf_counter()
        loss, *_ = [step.advance() for _ in range(count)]
        pipe.send(((time.perf_counter() - started) / count, loss))
