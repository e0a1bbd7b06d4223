"""Writes tables in Markdown."""

from collections.abc import Sequence


def to_markdown(rows: Sequence[Sequence[str]]) -> str:
    r"""Returns a table in Markdown, without a line break at its end.

    Args:
      rows: cells by row; the first row is the header. Vertical bars in cells are escaped.

    Example:
      >>> print(to_markdown([["run", "loss"], ["a|b", "0.5"]]))
      | run | loss |
      | --- | --- |
      | a\|b | 0.5 |
    """
    header, *others = ([cell.replace("|", r"\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *others])
