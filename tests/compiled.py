"""What a compiled program does."""

import math
import re


def collectives(text):
    """Of a compiled program: (operation, the number of elements of each of its results)."""
    found = re.findall(r"= (.+?) (all-\w+|reduce-scatter|collective-\w+|ragged-\S+)(?:-start)?\(", text)
    shapes = [(operation, re.findall(r"\w+\[([\d,]*)\]", result)) for result, operation in found]
    return [(name, [math.prod(map(int, filter(None, s.split(",")))) for s in sizes]) for name, sizes in shapes]
