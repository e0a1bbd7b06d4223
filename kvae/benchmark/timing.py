"""Times functions, and formats the results as tables."""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STARTED = time.perf_counter()


def median_seconds(function: Callable, *arguments: Any, seconds: float = 1.0) -> float:
    """Returns the median time of a call of a compiled function, in seconds. The first call is not timed.

    Args:
      function: A function compiled by `jax.jit`.
      *arguments: Its arguments.
      seconds: Time to spend; at least three calls are timed.
    """
    jax.block_until_ready(function(*arguments))
    times, deadline = [], time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(times) < 3:
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def time_row(seconds: list[float]) -> dict[str, Any]:
    """Returns the median and the quartiles of seconds per step, by name, in milliseconds."""
    low, median, high = np.percentile(seconds, [25, 50, 75]) * 1e3
    return {"step_milliseconds": median, "step_milliseconds_quartiles": [low, high]}


def matmul_gigaflop_per_second(dtype: Any) -> float:
    """Returns the rate of a large matrix product on one device (on CPU, all cores) at JAX's default precision."""
    size = 2_048 if jax.default_backend() == "cpu" else 8_192
    a = jnp.ones((size, size), dtype)
    return 2 * size**3 / median_seconds(jax.jit(jnp.matmul), a, a, seconds=0.5) / 1e9


def log_progress(text: str) -> None:
    """Prints the seconds since the start, then the text, as a line to stderr."""
    print(f"{time.perf_counter() - STARTED:5.1f} s  {text}", file=sys.stderr, flush=True)


def format_table(columns: dict[str, dict]) -> str:
    """Returns columns {name: {row: value}} as an aligned text table."""
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    lines = [
        ["", *(name.replace("_", " ") for name in columns)],
        *([row.replace("_", " "), *(format_value(column.get(row)) for column in columns.values())] for row in rows),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def transpose(columns: dict[str, dict]) -> dict[str, dict]:
    """Returns rows {row: {column: value}} of columns {column: {row: value}}."""
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    return {row: {name: column.get(row) for name, column in columns.items()} for row in rows}


def format_value(value: Any) -> str:
    """Formats a number with four digits, a sequence of numbers as a range, and None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return " - ".join(format_value(part) for part in value)
    return f"{value:,.0f}" if abs(value) >= 1_000 or isinstance(value, int) else f"{value:.4g}"
