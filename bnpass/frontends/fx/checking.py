"""An edited module against the one it was made of, on the example inputs."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from bnpass.errors import RefusedError
from bnpass.frontends.fx.inputs import Example
from bnpass.frontends.fx.observing import parting_line, quiet_state
from bnpass.frontends.fx.recording import unchanged
from bnpass.frontends.fx.structure import tensors_in
from bnpass.frontends.fx.tracing import mode, obstacle

_TOLERANCE = {torch.float64: 1e-6, torch.complex128: 1e-6, torch.float32: 1e-2}
"""Of the largest number: what a wrong edit exceeds, and rounding does not."""

_COARSE = 0.1

@dataclass(frozen=True)
class Outcome:
    """What one run of a module made.

    Attributes:
        tensors: its outputs; None where it has no data, or does not run.
        failure: why it does not run: the user's line, and the error.
    """

    tensors: list[torch.Tensor] | None = None
    failure: str = ""


def outputs(
    module: nn.Module, example: Example, training: bool | None, still: Sequence[nn.Module] = ()
) -> Outcome:
    """What a module computes.

    Args:
        module: left as it is.
        example: what its forward takes.
        training: the mode; None: that in which each module is.
        still: modules that stay in eval mode.
    """
    held = [*module.parameters(), *module.buffers(), *example.tensors]
    if any(t.is_meta or isinstance(t, FakeTensor) for t in held):
        return Outcome()
    kept = [(b, b.clone()) for b in module.buffers()]
    given = example.changed(torch.clone)
    try:
        way = nullcontext() if training is None else mode(module, training)
        with unchanged(module), quiet_state(), torch.no_grad(), way, _silent():
            for one in still:
                one.training = False
            torch.manual_seed(0)
            made = tensors_in(module(*given.args, **given.kwargs))
            return Outcome([t.detach().clone() for t in made])
    except Exception as error:  # noqa: BLE001 - whatever the user's forward raises
        where, text = obstacle(error)
        return Outcome(failure=f"it does not run{where}: {text}")
    finally:
        for buffer, value in kept:
            buffer.data.copy_(value)


@contextmanager
def _silent() -> Iterator[None]:
    """torch prints the generated code of a graph that fails, which says nothing to its user."""
    with redirect_stderr(io.StringIO()):
        yield


@dataclass(frozen=True)
class Reference:
    """What a module computes before it is edited: what its edited copy has to compute.

    Attributes:
        module: the module.
        example: what its forward takes.
        runs: by what is said of a difference: (example, mode, outcome).
    """

    module: nn.Module
    example: Example
    runs: dict[str, tuple[Example, bool | None, Outcome]]

    @classmethod
    def of(cls, module: nn.Module, example: Example, modes: Sequence[bool | None]) -> Reference:
        """Run a module on its example in some modes, and in the first one on other sizes."""
        runs = {_TEXTS[m]: (example, m, outputs(module, example, m)) for m in modes}
        for name, one in example.other_sizes():
            found = outputs(module, one, modes[0])
            runs[f"with {name}"] = one, modes[0], found
        held = {k: run for k, run in runs.items() if run[2].tensors is not None}
        return cls(module, example, held)

    def difference(self, made: nn.Module, still: Sequence[nn.Module] = ()) -> str:
        """How an edited module differs, and on which input; empty where it does not."""
        for name, (example, training, wanted) in self.runs.items():
            got = outputs(made, example, training, still)
            found = _difference(wanted, got)
            if found:
                line = "" if got.failure else parting_line(self.module, self.example, example)
                line = line and f"; its forward goes another way there{line}"
                what = "the edited module would not compute what the given one does"
                return f"{name} {what}: {found}{line}"
        return ""


T = TypeVar("T")


def culprits(parts: list[T], fault: str, only: Callable[[list[T]], str]) -> list[tuple[T, str]]:
    """The edits of a faulty result that are at fault, with what each of them does.

    Found by halving: two trials for each halving of each of them, and no more than a few dozen;
    then what is left is all at fault.

    Args:
        parts: all edits.
        fault: what they do together.
        only: makes just these edits, and says what is wrong then, or nothing.
    """
    todo, found = [(parts, fault)], []
    for _ in range(_TRIALS):
        if not todo:
            break
        some, text = todo.pop()
        if len(some) == 1:
            found.append((some[0], text))
            continue
        halves = some[: len(some) // 2], some[len(some) // 2 :]
        worse = [(half, said) for half in halves if (said := only(half))]
        if not worse:  # only together
            found += [(part, text) for part in halves[1]]
        todo += worse
    return found + [(part, text) for some, text in todo for part in some]


_TRIALS = 40
_TEXTS = {False: "in eval mode", True: "in training mode", None: "in eval mode"}


def refusal(difference: str) -> RefusedError:
    """The error of an edit that would change what a module computes."""
    return RefusedError(
        difference, "leave layers out with only= or skip=, and report this with the module"
    )


def _difference(wanted: Outcome, made: Outcome) -> str:
    if made.tensors is None or wanted.tensors is None:
        return made.failure
    if len(wanted.tensors) != len(made.tensors):
        return f"{len(made.tensors)} tensors instead of {len(wanted.tensors)}"
    for a, b in zip(wanted.tensors, made.tensors, strict=True):
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
