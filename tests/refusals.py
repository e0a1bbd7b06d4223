"""Asserts that a call is refused in one short line."""

import pytest

from kvae.core.errors import InputError


def refusal(call, *arguments, **fields):
    """Returns the message of the InputError that a call raises: one printable line."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **fields)
    line = str(caught.value)
    assert line.isprintable() and len(line) < 500, line
    return line
