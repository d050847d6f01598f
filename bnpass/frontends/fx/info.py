"""Shapes and types of the values of a torch.fx graph, kept in ``node.meta``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bnpass.errors import InputError
from bnpass.frontends.fx.hooks import OBSERVED, has_hooks, watched
from bnpass.frontends.fx.layout import order_of
from bnpass.frontends.fx.tracing import mode
from bnpass.ir.graph import Dim

META = "bnpass"
BATCH = "N"


@dataclass(frozen=True)
class Info:
    """What is known of a tensor.

    Attributes:
        shape: its dimensions.
        dtype: numpy's name of its type.
        order: see :func:`bnpass.frontends.fx.layout.order_of`.
    """

    shape: tuple[Dim, ...]
    dtype: str
    order: tuple[int, ...] | None = field(default=None, compare=False)


Infos = Any
"""An Info, None for what is no tensor, or a tuple of such."""


def dtype_name(dtype: torch.dtype) -> str:
    """numpy's name of a torch type."""
    return str(dtype).removeprefix("torch.")


def describe(value: Any) -> Infos:
    """The Info of a tensor, or a tuple of them for a sequence."""
    if isinstance(value, torch.Tensor):
        dims = tuple(d if isinstance(d, int) else str(d) for d in value.shape)
        return Info(dims, dtype_name(value.dtype), order_of(value))
    if isinstance(value, torch.Size):
        return None
    if isinstance(value, tuple | list):
        return tuple(describe(v) for v in value)
    return None


def propagate(gm: fx.GraphModule, example_inputs: tuple[Any, ...] | None) -> None:
    """Write every node's Info into its meta.

    With two batch sizes, so that dimensions that follow the batch are symbolic; where only the
    size given works, they stay numbers.

    Raises:
        InputError: there is nothing to learn the shapes from, or the inputs do not fit.
    """
    if example_inputs is None:
        _from_meta(gm)
        return
    example_inputs = as_tuple(example_inputs)
    first = _run(gm, example_inputs)
    larger, size = _one_more(example_inputs)
    second = _try_run(gm, larger) if larger is not None else None
    for node in gm.graph.nodes:
        info = first.get(node)
        if second is not None:
            info = merge(info, second.get(node), size)
        node.meta[META] = info


def as_tuple(inputs: Any) -> tuple[Any, ...]:
    """Example inputs as a tuple; one tensor alone is taken for the only input."""
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def _from_meta(gm: fx.GraphModule) -> None:
    """What an earlier pass or torch.export has left in the nodes."""
    for node in gm.graph.nodes:
        if META in node.meta and not isinstance(node.meta[META], dict):
            continue
        if "val" in node.meta:
            node.meta[META] = describe(node.meta["val"])
        elif node.op == "placeholder":
            raise InputError(
                f"the shape of input {node.name!r} is not known",
                "pass example_inputs, a tuple of tensors as forward takes them",
            )


def _one_more(inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...] | None, int]:
    """The inputs with one sample more, and the batch size; None where they do not share one."""
    sizes = {x.shape[0] for x in inputs if isinstance(x, torch.Tensor) and x.dim()}
    if len(sizes) != 1 or 0 in sizes:
        return None, 0
    return tuple(
        torch.cat([x, x[:1]]) if isinstance(x, torch.Tensor) and x.dim() else x for x in inputs
    ), sizes.pop()


def merge(one: Infos, other: Infos, size: int) -> Infos:
    """What holds for runs with ``size`` and with ``size + 1`` samples."""
    if isinstance(one, Info) and isinstance(other, Info):
        if len(one.shape) != len(other.shape):
            return None
        dims = tuple(_dim(a, b, size) for a, b in zip(one.shape, other.shape, strict=True))
        return Info(dims, one.dtype, one.order)
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return tuple(merge(a, b, size) for a, b in zip(one, other, strict=True))
    return one


def _dim(a: Dim, b: Dim, size: int) -> Dim:
    """A dimension that grew with the batch is N or a multiple of it; else it is not known."""
    if a == b:
        return a
    if isinstance(a, int) and isinstance(b, int) and a * (size + 1) == b * size and a % size == 0:
        return BATCH if a == size else f"{a // size}*{BATCH}"
    return None


def joined(dims: tuple[Dim, ...]) -> Dim:
    """The size of several axes as one."""
    whole, symbol = 1, ""
    for dim in dims:
        factor, _, name = str(dim).rpartition("*")
        if isinstance(dim, int):
            whole *= dim
        elif name == BATCH and not symbol:
            whole, symbol = whole * int(factor or 1), name
        else:
            return None
    return whole if not symbol else symbol if whole == 1 else f"{whole}*{symbol}"


# --- running -----------------------------------------------------------------------------------


class _Recorder(fx.Interpreter):
    """Runs a graph and notes what every node makes."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.graph_module = gm
        self.infos: dict[fx.Node, Infos] = {}
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        module = module_of(self.graph_module, n)
        if module is not None and has_hooks(module):
            with watched(module) as alters:
                value = super().run_node(n)
            n.meta[OBSERVED] = not alters
        else:
            value = super().run_node(n)
        self.infos[n] = describe(value)
        return value


Recorded = dict[fx.Node, Infos]


def _run(gm: fx.GraphModule, inputs: tuple[Any, ...]) -> Recorded:
    """Without computing where that works, else for real on copies of the buffers."""
    failure: Exception | None = None
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what fails here runs once more for real
    hooked = any(has_hooks(m) for m in gm.modules())  # hooks should not meet fake tensors
    for run in (_run_real,) if hooked else (_run_fake, _run_real):
        try:
            return run(gm, inputs)
        except Exception as error:  # noqa: BLE001 - whatever the user's forward raises
            failure = error
        finally:
            log.setLevel(level)
    text = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
    raise InputError(
        f"the module does not run on the example inputs: {text}",
        "example_inputs is a tuple of what its forward takes",
    ) from failure


def _try_run(gm: fx.GraphModule, inputs: tuple[Any, ...]) -> Recorded | None:
    try:
        return _run(gm, inputs)
    except InputError:
        return None


def _run_fake(gm: fx.GraphModule, inputs: tuple[Any, ...]) -> Recorded:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with mode(gm, False), torch.no_grad(), fake:
        given = [fake.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in inputs]
        return _record(gm, given)


def _run_real(gm: fx.GraphModule, inputs: tuple[Any, ...]) -> Recorded:
    held = [(b, b.clone()) for b in gm.buffers()]
    given = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    try:
        with mode(gm, False), torch.no_grad():
            return _record(gm, given)
    finally:
        for buffer, value in held:
            buffer.data.copy_(value)


def _record(gm: fx.GraphModule, inputs: list[Any]) -> Recorded:
    recorder = _Recorder(gm)
    process: Callable[..., Any] = gm.graph.process_inputs
    recorder.run(*process(*inputs), enable_io_processing=False)
    return recorder.infos


def module_of(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    return gm.get_submodule(str(node.target)) if node.op == "call_module" else None
