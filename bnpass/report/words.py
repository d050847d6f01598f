"""Numbers with their nouns: thousands separated, one noun for one thing."""

from __future__ import annotations


def many(count: int, noun: str) -> str:
    """``1 BatchNorm``, ``1,234 BatchNorms``, ``2 nonlinearities``, ``3 biases``."""
    return f"{count:,} {noun if count == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """A regular English plural."""
    if noun.endswith(("s", "x", "ch")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"
