"""Inspection of compiled programs."""

import math
import re


def collectives(text):
    """Returns the collectives of a compiled program: (operation, number of elements of each result)."""
    operations = re.findall(r"= (.+?) (all-\w+|reduce-scatter|collective-\w+|ragged-\S+)(?:-start)?\(", text)
    shapes = [(operation, re.findall(r"\w+\[([\d,]*)\]", result)) for result, operation in operations]
    return [(name, [math.prod(map(int, filter(None, s.split(",")))) for s in sizes]) for name, sizes in shapes]
