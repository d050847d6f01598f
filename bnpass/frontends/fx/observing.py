"""A module -> the recording of a run whose values carry symbolic shapes where the batch counts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from bnpass.errors import InputError, UnsupportedError
from bnpass.frontends.fx.hooks import has_hooks
from bnpass.frontends.fx.info import META, merge
from bnpass.frontends.fx.inputs import Example
from bnpass.frontends.fx.normhook import is_norm_hook
from bnpass.frontends.fx.recording import LINE, Recording, noting_lines, record
from bnpass.frontends.fx.tracing import mode


def observe(root: nn.Module, example: Example, *, training: bool = False) -> Recording:
    """Record a run in eval (or training) mode, and one with a sample more for the shapes.

    Raises:
        InputError: the module does not run on the example.
        UnsupportedError: it computes in Python with numbers from its data.
    """
    first = _run(root, example, training)
    larger, size = example.one_more()
    second = _try_run(root, larger, training) if larger is not None else None
    if second is None:
        return first
    a, b = list(first.gm.graph.nodes), list(second.gm.graph.nodes)
    if [(n.op, n.name) for n in a] == [(n.op, n.name) for n in b]:
        for one, other in zip(a, b, strict=True):
            one.meta[META] = merge(one.meta.get(META), other.meta.get(META), size)
    return first


def parting_line(root: nn.Module, one: Example, other: Example) -> str:
    """`` at FILE:LINE: TEXT`` where a forward goes another way on another example, or nothing."""
    token = noting_lines.set(True)
    try:
        runs = [_try_run(root, example, root.training) for example in (one, other)]
    finally:
        noting_lines.reset(token)
    if runs[0] is None or runs[1] is None:
        return ""
    calls = [[n for n in run.gm.graph.nodes if n.op.startswith("call")] for run in runs if run]
    for a, b in zip(*calls, strict=False):
        if (a.op, str(a.target)) != (b.op, str(b.target)):
            return str(b.meta.get(LINE, ""))
    return ""


def _try_run(root: nn.Module, example: Example, training: bool) -> Recording | None:
    try:
        return _run(root, example, training)
    except (InputError, UnsupportedError):
        return None


def _run(root: nn.Module, example: Example, training: bool) -> Recording:
    """Without computing where that works, else for real."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what fails here runs once more for real
    ways = (_run_real,) if _needs_data(root, example) else (_run_fake, _run_real)
    failure: Exception | None = None
    try:
        for way in ways:
            try:
                with mode(root, training) if root.training != training else ExitStack():
                    return way(root, example)
            except Exception as error:  # noqa: BLE001 - whatever the user's forward raises
                failure = error
    finally:
        log.setLevel(level)
    if isinstance(failure, UnsupportedError):
        raise failure
    text = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
    raise InputError(
        f"the module does not run on the example inputs: {text}",
        "example_inputs is a tuple of what its forward takes",
    ) from failure


def _needs_data(root: nn.Module, example: Example) -> bool:
    """Hooks of others should not meet fake tensors; nor are there any on meta."""
    if any(t.is_meta for t in (*example.tensors, *root.parameters())):
        return True
    return any(has_hooks(m) and not all(map(is_norm_hook, _hooks(m))) for m in root.modules())


def _hooks(module: nn.Module) -> list[Any]:
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def _run_fake(root: nn.Module, example: Example) -> Recording:
    held = [t for t in (*example.tensors, *root.parameters()) if isinstance(t, FakeTensor)]
    fake = held[0].fake_mode if held else FakeTensorMode(allow_non_fake_inputs=True)
    with quiet_state(), torch.no_grad(), fake:
        given = example.changed(torch.clone if held else fake.from_tensor)
        return record(root, given, real=False)


def _run_real(root: nn.Module, example: Example) -> Recording:
    held = [(b, b.clone()) for b in root.buffers() if not b.is_meta]
    given = example.changed(torch.clone)
    try:
        with quiet_state(), torch.no_grad():
            return record(root, given, real=True)
    finally:
        for buffer, value in held:
            buffer.data.copy_(value)


@contextmanager
def quiet_state() -> Iterator[None]:
    """Without autocast and inference mode around; random numbers are drawn as if for nothing."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        yield
