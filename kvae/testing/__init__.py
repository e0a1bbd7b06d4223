"""A conformance kit for quantisers in JAX: call `check_quantizer` in a test of your own quantiser.

Example:
  >>> import kvae
  >>> def test_my_quantizer():
  ...     kvae.testing.check_quantizer(lambda: kvae.FSQ(levels=(5, 3)))
  >>> test_my_quantizer()
"""

from collections.abc import Callable, Collection
from typing import Any

from kvae.testing.laws import CHECKS
from kvae.testing.subjects import Output, Subject, Trial, as_subject

__all__ = ["CHECKS", "Output", "Subject", "Trial", "check_quantizer", "failures"]


def failures(make_layer: Callable[[], Any], dimension: int = 16, without: Collection[str] = ()) -> dict[str, str]:
    """Returns the error messages of all failed checks, by the names of the checks.

    Args:
      make_layer: function that returns the quantiser: a linen or NNX layer with the call signature of kvae's layers, or
        a `Subject`.
      dimension: d, the length of the vectors.
      without: names of checks to skip.
    """
    trial, reasons = Trial(as_subject(make_layer()), dimension), {}
    for name, check in CHECKS.items():
        if name not in without:
            try:
                check(trial)
            except Exception as error:  # code outside kvae may raise anything
                reasons[name] = " ".join(str(error).split())[:300] or type(error).__name__
    return reasons


def check_quantizer(make_layer: Callable[[], Any], dimension: int = 16, without: Collection[str] = ()) -> None:
    """Runs all checks on a quantiser.

    Args:
      make_layer, dimension, without: see `failures`.

    Raises:
      AssertionError: a check fails; the message lists every failed check.
    """
    reasons = failures(make_layer, dimension, without)
    assert not reasons, "\n".join(f"{name} ({CHECKS[name].__doc__}): {reason}" for name, reason in reasons.items())
