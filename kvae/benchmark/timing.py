"""How functions are timed, and how what was measured is shown."""

import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

STARTED = time.perf_counter()


def median_seconds(function: Callable, *arguments, seconds: float = 1.0) -> float:
    """The median time of a jitted function, after a first call."""
    jax.block_until_ready(function(*arguments))
    taken, deadline = [], time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(taken) < 3:
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def matmul_gigaflop_per_second(dtype) -> float:
    """The rate of a large matrix product on one device, or on the whole of a CPU, at JAX's default precision."""
    size = 2_048 if jax.default_backend() == "cpu" else 8_192
    a = jnp.ones((size, size), dtype)
    return 2 * size**3 / median_seconds(jax.jit(jnp.matmul), a, a, seconds=0.5) / 1e9


def say(text: str) -> None:
    """Shows what is being done, and when it began."""
    print(f"{time.perf_counter() - STARTED:5.1f} s  {text}", file=sys.stderr, flush=True)


def table(rows: dict[str, dict]) -> str:
    """Columns by name, each a dict of numbers, as aligned text."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [
        ["", *(row.replace("_", " ") for row in rows)],
        *([name.replace("_", " "), *(format_value(row.get(name)) for row in rows.values())] for name in names),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(rows) + 1)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def transposed(rows: dict[str, dict]) -> dict[str, dict]:
    """Columns as rows."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: {label: row.get(name) for label, row in rows.items()} for name in names}


def format_value(value) -> str:
    """A number in four digits, a range of numbers, or a dash where there is none."""
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return " - ".join(format_value(part) for part in value)
    return f"{value:,.0f}" if abs(value) >= 1_000 or isinstance(value, int) else f"{value:.4g}"
