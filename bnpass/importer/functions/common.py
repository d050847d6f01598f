"""What the runtime functions share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Ints = Sequence[int] | Tensor


def ints(values: Ints) -> list[int]:
    """A list of ints from sizes or from a computed tensor."""
    if isinstance(values, Tensor):
        return [int(v) for v in values.reshape(-1).tolist()]
    return list(values)  # under torch.compile they may be symbols


def host_tensor(values: object, dtype: torch.dtype) -> Tensor:
    """A constant of the shape arithmetic, on the CPU."""
    return torch.tensor(values, dtype=dtype)


def to_device(value: Tensor, like: Tensor) -> Tensor:
    """A value of the shape arithmetic on the device of ``like``."""
    return value.to(like.device)


def fixed_batch(x: Tensor, size: int, name: str, reason: str) -> Tensor:
    """``x`` itself, after a check that axis 0 has the one size that the model works with."""
    if x.shape[0] != size:
        from bnpass.errors import InputError

        raise InputError(
            f"input {name!r} has batch size {x.shape[0]}, but the model is fixed to {size}", reason
        )
    return x
