"""Sizes of axes as products of a number and symbols: ``N`` samples of 5 tokens are ``5*N`` rows."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from math import prod

from bnpass.ir.graph import Dim

_SYMBOL = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Product:
    """A size that is not the same in every run.

    Attributes:
        factor: the number, not 0.
        symbols: names of dimensions, sorted; one for each time that it is a factor.
    """

    factor: int
    symbols: tuple[str, ...]


Extent = int | Product | None
"""A size; None where nothing is known of it."""


def extent(dim: Dim) -> Extent:
    """A dimension as a product; a name that is no product of names is one symbol."""
    if not isinstance(dim, str):
        return dim
    parts = [part.strip() for part in dim.split("*")]
    if not all(part.isdecimal() or _SYMBOL.fullmatch(part) for part in parts):
        return Product(1, (dim,))
    factor = prod(int(part) for part in parts if part.isdecimal())
    return _made(factor, tuple(part for part in parts if not part.isdecimal()))


def dimension(size: Extent) -> Dim:
    """A product as a dimension, equal ones with equal names."""
    if not isinstance(size, Product):
        return size
    names = "*".join(size.symbols)
    return names if size.factor == 1 else f"{size.factor}*{names}"


def times(a: Extent, b: Extent) -> Extent:
    """The product."""
    if a == 0 or b == 0:
        return 0
    if a is None or b is None:
        return None
    one, other = _split(a), _split(b)
    return _made(one[0] * other[0], (*one[1], *other[1]))


def over(a: Extent, b: Extent) -> Extent:
    """The quotient where it has no remainder whatever the symbols are, else None."""
    if a is None or b is None or b == 0:
        return None
    (n, above), (d, below) = _split(a), _split(b)
    left = Counter(above)
    left.subtract(below)
    if n % d or any(count < 0 for count in left.values()):
        return None
    return _made(n // d, tuple(left.elements()))


def plus(a: Extent, b: Extent, sign: int = 1) -> Extent:
    """The sum (``sign`` 1) or difference (-1) of multiples of one thing, else None."""
    if b == 0:
        return a
    if a is None or b is None:
        return None
    (n, one), (m, other) = _split(a), _split(b)
    if a == 0:
        return _made(sign * m, other)
    return _made(n + sign * m, one) if one == other else None


def product(sizes: list[Extent]) -> Extent:
    """Of several sizes; of none it is 1."""
    total: Extent = 1
    for size in sizes:
        total = times(total, size)
    return total


def _split(size: int | Product) -> tuple[int, tuple[str, ...]]:
    return (size, ()) if isinstance(size, int) else (size.factor, size.symbols)


def _made(factor: int, symbols: tuple[str, ...]) -> Extent:
    if not factor or not symbols:
        return factor
    return Product(factor, tuple(sorted(symbols)))
