"""What a file may cost: work that a small file can ask for is measured against a limit.

A few kB of ONNX, gzip or numpy can declare terabytes. Wherever memory or time follows from what a
file says and not from its size, the amount is compared with a limit first, and the refusal names
the culprit, the limit and how to lift it: ``BNPASS_LIMITS=constants=4G,nodes=5M`` (k, M, G and T
are powers of 1024) or ``BNPASS_LIMITS=off``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache

from bnpass.errors import InputError, UsageError

VARIABLE = "BNPASS_LIMITS"
"""The environment variable that lifts limits."""

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Limit:
    """A limit: so much, or so many times the file's own size where that is more.

    Attributes:
        what: what is counted, for messages.
        amount: the limit for a small file, in bytes or pieces.
        times: of a large file: times its bytes; 0 where its size does not matter.
        bytes: whether it counts bytes.
    """

    what: str
    amount: int
    times: int = 0
    bytes: bool = True


LIMITS = {
    "constants": Limit("constants that are computed from others", 1 << 28, 16),
    "nodes": Limit("nodes after functions are written out", 1_000_000, bytes=False),
    "names": Limit("bytes of names after functions are written out", 1 << 28),
    "decompressed": Limit("decompressed or declared data", 1 << 28, 64),
    "unused": Limit("bytes of a data file that no tensor uses", 1 << 28, 16),
    "channels": Limit("channels of a value", 1 << 24, bytes=False),
    "inputs": Limit("random inputs of a model", 1 << 28, 64),
}
"""Every limit by its name in :data:`VARIABLE`."""


class BudgetError(InputError):
    """A file asks for more work than its limit; the hint says how to lift it."""


def allowed(name: str, file_size: int = 0) -> float:
    """How much is allowed for a file of ``file_size`` bytes; infinity where it was lifted.

    Raises:
        UsageError: the variable cannot be understood.
    """
    wanted = _wanted(os.environ.get(VARIABLE, ""))
    limit = LIMITS[name]
    if name in wanted:
        return wanted[name]
    return max(limit.amount, limit.times * file_size)


def is_set() -> bool:
    """Whether somebody has set limits: then even small amounts have to be compared."""
    return bool(os.environ.get(VARIABLE))


def check(name: str, amount: float, where: str, file_size: int = 0) -> None:
    """Refuse an amount that is beyond the limit.

    Args:
        name: of the limit.
        amount: what the file asks for, in bytes or pieces.
        where: the node, value or file that asks, as the message begins.
        file_size: bytes of the file that says so.

    Raises:
        BudgetError: it is beyond.
    """
    most = allowed(name, file_size)
    if amount <= most:
        return
    limit = LIMITS[name]
    shown = (_bytes(amount), _bytes(most)) if limit.bytes else (f"{amount:,.0f}", f"{most:,.0f}")
    raise BudgetError(
        f"{where} asks for {shown[0]}: the limit of {limit.what} is {shown[1]}",
        f"where the file is to be trusted, set {VARIABLE}={name}={_suggested(amount, limit)} (or "
        f"{VARIABLE}=off)",
    )


def _bytes(amount: float) -> str:
    size = float(amount)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.0f} TiB" if size < 1024 else f"over {1024:,} TiB"


def _suggested(amount: float, limit: Limit) -> str:
    if not limit.bytes:
        return f"{amount:.0f}"
    return f"{-(-int(amount) >> 30)}G" if amount < 1 << 60 else "off"


@lru_cache(maxsize=8)
def _wanted(text: str) -> dict[str, float]:
    """The limits that the variable sets."""
    if text.strip().lower() in {"off", "none"}:
        return dict.fromkeys(LIMITS, float("inf"))
    wanted = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"(\w+)=(?:(\d+)([kmgt]?)|off)", part, re.IGNORECASE)
        if found is None or found[1] not in LIMITS:
            raise UsageError(f"{VARIABLE}: {part!r} is no limit",
                             f"NAME=NUMBER with one of {', '.join(LIMITS)}, or {VARIABLE}=off")
        number = int(found[2]) * _UNITS[found[3].lower()] if found[2] else float("inf")
        wanted[found[1]] = number
    return wanted
