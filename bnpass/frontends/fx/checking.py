"""An edited module against the one it was made of, on the example inputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from bnpass.errors import RefusedError
from bnpass.frontends.fx.inputs import Example
from bnpass.frontends.fx.observing import quiet_state
from bnpass.frontends.fx.recording import unchanged
from bnpass.frontends.fx.structure import tensors_in
from bnpass.frontends.fx.tracing import mode

_TOLERANCE = {torch.float64: 1e-6, torch.complex128: 1e-6, torch.float32: 1e-2}
"""Of the largest number: what a wrong edit exceeds, and rounding does not."""

_COARSE = 0.1

Outputs = list[torch.Tensor] | None


def outputs(
    module: nn.Module, example: Example, training: bool | None, still: Sequence[nn.Module] = ()
) -> Outputs:
    """What a module computes; None where it has no data, or does not run in this mode.

    Args:
        module: left as it is.
        example: what its forward takes.
        training: the mode; None: that in which each module is.
        still: modules that stay in eval mode.
    """
    held = [*module.parameters(), *module.buffers(), *example.tensors]
    if any(t.is_meta or isinstance(t, FakeTensor) for t in held):
        return None
    kept = [(b, b.clone()) for b in module.buffers()]
    given = example.changed(torch.clone)
    try:
        way = nullcontext() if training is None else mode(module, training)
        with unchanged(module), quiet_state(), torch.no_grad(), way:
            for one in still:
                one.training = False
            torch.manual_seed(0)
            return [t.detach().clone() for t in tensors_in(module(*given.args, **given.kwargs))]
    except Exception:  # noqa: BLE001 - whatever the user's forward raises
        return None
    finally:
        for buffer, value in kept:
            buffer.data.copy_(value)


def at_other_sizes(
    module: nn.Module, example: Example, training: bool | None,
    still: Sequence[nn.Module] = (),
) -> dict[str, Outputs]:  # fmt: skip
    """What a module computes on inputs of other sizes, by what was changed."""
    changed = example.other_sizes()
    return {name: outputs(module, one, training, still) for name, one in changed}


def check_sizes(wanted: dict[str, Outputs], got: dict[str, Outputs]) -> None:
    """Refuse a result that was planned for the sizes of the example alone.

    Raises:
        RefusedError: the module's forward does something else at another size.
    """
    for name, outs in wanted.items():
        difference = _difference(outs, got.get(name))
        if difference:
            raise RefusedError(
                f"with {name}, the edited module would not compute what the given one does "
                f"({difference}): its forward decides by the sizes of its inputs",
                "leave the layers of that branch out with skip=, or give an example that takes it",
            )


def check_same(wanted: Outputs, got: Outputs, what: str) -> None:
    """Refuse a result that computes something else.

    Raises:
        RefusedError: it does.
    """
    difference = _difference(wanted, got)
    if difference:
        raise RefusedError(
            f"{what} the edited module would not compute what the given one does: {difference}",
            "leave layers out with only= or skip=, and report this with the module",
        )


def _difference(wanted: Outputs, got: Outputs) -> str:
    if wanted is None:
        return ""
    if got is None:
        return "it does not run"
    if len(wanted) != len(got):
        return f"{len(got)} tensors instead of {len(wanted)}"
    for a, b in zip(wanted, got, strict=True):
        if a.shape != b.shape:
            return f"shape {list(b.shape)} instead of {list(a.shape)}"
        error = _error(a, b)
        if error > _TOLERANCE.get(a.dtype, _COARSE):
            return f"off by {error:.1e} of the largest number"
    return ""


def _error(a: Any, b: Any) -> float:
    if not a.numel():
        return 0.0
    x, y = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
    same = (x == y) | (x.isnan() & y.isnan())
    apart = torch.where(same, torch.zeros_like(x), x - y).abs()
    largest = torch.where(x.isfinite(), x, torch.zeros_like(x)).abs().max().clamp(min=1e-30)
    error = float((apart / largest).max())
    return error if error == error else float("inf")
