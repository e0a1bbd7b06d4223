"""Figures of what the order of a codebook is good for."""

import itertools

import numpy as np

from kvae.figures.canvas import PALETTE, drawing, labelled_curves, refuse_empty


def _of_seeds(what, values):
    """Says what bands or bars stand for, of arrays [seeds, ...] by label."""
    return f"{what}: one standard deviation over {max(map(len, values))} seeds."


def bit_errors(path, rates, lost, title):
    """Draws the PSNR that bit errors cost.

    Args:
      path: the PNG file.
      rates: bit error rates, float [n].
      lost: {label: dB below the PSNR without errors, [seeds, n]}.
      title: what one sees.
    """
    refuse_empty("lost", lost)
    note = (
        "A code is sent as its place on the grid, in Gray code, or as a number where there is no grid. Some bits are "
        f"flipped on the way. Lower is better. {_of_seeds('Bands', lost.values())}"
    )
    with drawing(path, 5.2, 3.1, title, note) as figure:
        axes = figure.subplots()
        labelled_curves(axes, rates, lost, marker="o", markersize=3.5)
        axes.set(xscale="log", xlabel="bits that are flipped", ylabel="PSNR lost (dB)")
        axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1], ["1 in 10,000", "1 in 1,000", "1 in 100", "1 in 10"])
        axes.legend()


def fewer_bits(path, bits, psnr, title):
    """Draws the PSNR of codebooks of which only some codes are kept.

    Args:
      path: the PNG file.
      bits: per code, float [n].
      psnr: {label: dB, [seeds, n]}.
      title: what one sees.
    """
    refuse_empty("psnr", psnr)
    bands = _of_seeds("Bands", psnr.values())
    note = f"Images are encoded with the codes that are kept, and decoded. Higher is better. {bands}"
    with drawing(path, 5.2, 3.1, title, note) as figure:
        axes = figure.subplots()
        labelled_curves(axes, bits, psnr, marker="o", markersize=3.5)
        axes.set(xlabel="codes that are kept", ylabel="PSNR (dB)")
        axes.set_xticks(bits, [f"{2**of_code:.0f}" for of_code in bits])
        axes.legend()


def compression(path, bits, title):
    """Draws what a code costs, in bits, in several ways of writing it.

    Args:
      path: the PNG file.
      bits: {label: {way: bits per code, [seeds]}}.
      title: what one sees.
    """
    refuse_empty("bits", bits)
    ways = list(dict.fromkeys(way for found in bits.values() for way in found))
    note = (
        "Bits that a coder spends if it knows how often codes are used, and the codes beside it in the image. Lower is "
        f"better. {_of_seeds('Bars', [own for found in bits.values() for own in found.values()])}"
    )
    with drawing(path, 5.6, 3.5, title, note) as figure:
        axes = figure.subplots()
        width = 0.8 / len(ways)
        for number, (color, way) in enumerate(zip(itertools.cycle(PALETTE), ways, strict=False)):
            places = [i for i, found in enumerate(bits.values()) if way in found]
            values = [found[way] for found in bits.values() if way in found]
            x = [place + (number - (len(ways) - 1) / 2) * width for place in places]
            spread = [np.std(own, ddof=1) if len(own) > 1 else 0 for own in values]
            bars = axes.bar(x, [np.mean(own) for own in values], 0.9 * width, yerr=spread, color=color, label=way)
            axes.bar_label(bars, fmt="%.1f", size=7)
        axes.set_xticks(range(len(bits)), list(bits))
        axes.set_ylabel("bits per code")
        figure.legend(ncols=2, loc="outside lower center")
