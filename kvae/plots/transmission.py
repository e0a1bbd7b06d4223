"""PNG figures on storing and sending codes: bit errors, codebook pruning and compression."""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kvae.plots.canvas import PALETTE, png_figure, require_series
from kvae.plots.curves import plot_labelled_curves


def _describe_deviation(mark: str, series: Iterable[Sequence]) -> str:
    """Returns the sentence that explains the bands or bars of arrays [seeds, ...]."""
    return f"{mark}: one standard deviation over {max(map(len, series))} seeds."


def draw_bit_errors(
    path: os.PathLike | str, rates: Sequence[float], lost: Mapping[str, np.ndarray], title: str
) -> None:
    """Draws the loss of PSNR at several bit error rates.

    Args:
      path: the PNG file.
      rates: bit error rates from 0 to 1, float [n].
      lost: {label: loss of PSNR in dB compared with no bit errors, [seeds, n]}.
      title: title of the figure.

    Raises:
      InputError: `lost` is empty.
    """
    require_series("lost", lost)
    note = (
        "Each code is sent in Gray code with random bits flipped: its position on the grid, or its number if it has no "
        f"ordered grid. Lower is better. {_describe_deviation('Bands', lost.values())}"
    )
    with png_figure(path, 5.2, 3.1, title, note) as figure:
        axes = figure.subplots()
        plot_labelled_curves(axes, rates, lost, marker="o", markersize=3.5)
        axes.set(xscale="log", xlabel="bit error rate", ylabel="PSNR lost (dB)")
        axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1], ["1 in 10,000", "1 in 1,000", "1 in 100", "1 in 10"])
        axes.legend()


def draw_pruning(path: os.PathLike | str, bits: Sequence[float], psnr: Mapping[str, np.ndarray], title: str) -> None:
    """Draws the PSNR after codes are removed from a codebook without further training.

    Args:
      path: the PNG file.
      bits: bits per code, log2 of the number of codes kept, float [n].
      psnr: {label: dB, [seeds, n]}.
      title: title of the figure.

    Raises:
      InputError: `psnr` is empty.
    """
    require_series("psnr", psnr)
    deviation = _describe_deviation("Bands", psnr.values())
    note = f"Images are encoded and decoded with the remaining codes only. Higher is better. {deviation}"
    with png_figure(path, 5.2, 3.1, title, note) as figure:
        axes = figure.subplots()
        plot_labelled_curves(axes, bits, psnr, marker="o", markersize=3.5)
        axes.set(xlabel="number of codes kept", ylabel="PSNR (dB)")
        axes.set_xticks(bits, [f"{2**per_code:.0f}" for per_code in bits])
        axes.legend()


def draw_compression(path: os.PathLike | str, bits: Mapping[str, Mapping[str, np.ndarray]], title: str) -> None:
    """Draws the number of bits per code for several coding schemes.

    Args:
      path: the PNG file.
      bits: {label: {coding scheme: bits per code, [seeds]}}.
      title: title of the figure.

    Raises:
      InputError: `bits` is empty.
    """
    require_series("bits", bits)
    schemes = list(dict.fromkeys(scheme for costs in bits.values() for scheme in costs))
    deviation = _describe_deviation("Bars", [seeds for costs in bits.values() for seeds in costs.values()])
    note = (
        "Bits per code of an ideal entropy coder. Colours: what the coder knows. Neighbouring codes are neighbours in "
        f"the image. Lower is better. {deviation}"
    )
    with png_figure(path, 5.6, 3.5, title, note) as figure:
        axes = figure.subplots()
        width = 0.8 / len(schemes)
        for number, (color, scheme) in enumerate(zip(itertools.cycle(PALETTE), schemes, strict=False)):
            positions = [i for i, costs in enumerate(bits.values()) if scheme in costs]
            values = [costs[scheme] for costs in bits.values() if scheme in costs]
            x = [position + (number - (len(schemes) - 1) / 2) * width for position in positions]
            deviations = [np.std(seeds, ddof=1) if len(seeds) > 1 else 0 for seeds in values]
            means = [np.mean(seeds) for seeds in values]
            bars = axes.bar(x, means, 0.9 * width, yerr=deviations, color=color, label=scheme)
            axes.bar_label(bars, fmt="%.1f", size=7, padding=2)
        axes.set_xticks(range(len(bits)), list(bits))
        axes.set_ylabel("bits per code")
        axes.margins(y=0.1)
        figure.legend(ncols=2, loc="outside lower center")
