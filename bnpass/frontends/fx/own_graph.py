"""One module's own forward as a GraphModule, its children as they are.

What a graph cannot hold is refused by name: other computations in the other mode, contexts
(no_grad, autocast, checkpointing), backward functions of one's own, attributes that forward sets.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from bnpass.errors import UnsupportedError
from bnpass.frontends.fx.modules import ByMode, TrainingFlag
from bnpass.frontends.fx.recording import Frame, changed_content, own_contents, unchanged
from bnpass.frontends.fx.structure import tensors_in
from bnpass.frontends.fx.tracing import keep_the_rest, mode, obstacle

_HINT = "leave it out with skip=, or write that part as a module of its own"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
          "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
          "_backward_pre_hooks", "_is_full_backward_hook", "_state_dict_hooks",
          "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
          "_non_persistent_buffers_set")  # fmt: skip
_FACTORIES = frozenset(
    {"arange", "zeros", "ones", "full", "empty", "eye", "linspace", "logspace", "tensor",
     "as_tensor", "rand", "randn", "randint", "randperm", "normal"}
)  # fmt: skip


class _Own(fx.Tracer):
    """Traces one forward; every module that it calls is a node."""

    def __init__(self, module: nn.Module, frame: Frame, *, sizes: bool) -> None:
        super().__init__(autowrap_modules=(math,))
        self.module, self.frame, self.sizes = module, frame, sizes
        self.state = _state()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Always."""
        del m, module_qualified_name
        return True

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Placeholders for all parameters; plain values are fixed, whole numbers maybe not."""
        del root_fn, is_module, concrete_args
        signature = inspect.signature(self.module.forward)
        args, kwargs = self.frame.given
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given: dict[str, Any] = {}
        for name, parameter in signature.parameters.items():
            value = bound.arguments[name]
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                if value:
                    raise UnsupportedError(
                        f"forward of {self.frame.path!r} takes *{name}, which no graph can", _HINT
                    )
                continue
            default = () if parameter.default is parameter.empty else (parameter.default,)
            proxy = self.create_proxy("placeholder", name, default, {})
            fixed = _is_plain(value) and not (self.sizes and type(value) is int)
            given[name] = value if fixed else proxy
            if fixed:
                self._guard(proxy, name, value)
        return (lambda *_: self.module.forward(**given)), [self.module]

    def _guard(self, proxy: fx.Proxy, name: str, value: Any) -> None:
        same = operator.is_ if value is None or isinstance(value, bool) else operator.eq
        held = self.create_proxy("call_function", same, (proxy, value), {})
        text = f"{name} is fixed at {value!r} in this graph"
        self.create_proxy("call_function", torch._assert, (held, text), {})

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A node, unless it stands in a context that the graph would lose."""
        if _state() != self.state:
            raise UnsupportedError(
                f"{named(self.frame)} computes under no_grad, autocast or checkpointing, which a "
                "graph would lose", _HINT,
            )  # fmt: skip
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        """No constant of a tensor that this forward makes."""
        if isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter):
            held = [*self.module.buffers(), *tensors_in(vars(self.module), 2)]
            if all(a is not t for t in held):
                raise UnsupportedError(
                    f"{named(self.frame)} uses a tensor that is neither parameter nor buffer",
                    _HINT,
                )
        return super().create_arg(a)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def named(frame: Frame) -> str:
    """How errors and reasons call a forward."""
    return f"forward of {type(frame.module).__name__}" + (f" {frame.path!r}" if frame.path else "")


def _state() -> tuple[Any, ...]:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), hooks,
            *(torch.is_autocast_enabled(d) for d in ("cpu", "cuda")))  # fmt: skip


class _Factories(TorchFunctionMode):
    """Tensors made from numbers alone are made at every call, not once."""

    def __init__(self, tracer: fx.Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """A node for a factory."""
        del types
        if getattr(func, "__name__", "") in _FACTORIES:
            return self.tracer.create_proxy("call_function", func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


@contextmanager
def _unchecked(module: nn.Module) -> Iterator[None]:
    """A BatchNorm's check of its input's rank is a branch, which says nothing of the values."""
    if isinstance(module, _BatchNorm):
        vars(module)["_check_input_dim"] = lambda *_: None
    yield


@contextmanager
def _no_contexts(frame: Frame) -> Iterator[None]:
    """Refuse contexts that change nothing here, and something where the graph may run."""
    kinds: tuple[Any, ...] = (torch.autocast, torch.enable_grad, torch.set_grad_enabled)
    held = [(kind, kind.__dict__.get("__enter__")) for kind in kinds]

    def entered(context: Any) -> Any:
        raise UnsupportedError(
            f"{named(frame)} enters {type(context).__name__}, which a graph would lose", _HINT
        )

    try:
        for kind in kinds:
            kind.__enter__ = entered
        yield
    finally:
        for kind, enter in held:
            if enter is None:
                del kind.__enter__
            else:
                kind.__enter__ = enter


@contextmanager
def _lengths(tracer: fx.Tracer, module: nn.Module) -> Iterator[None]:
    """``len`` of a value, which torch.fx knows only where the user has wrapped it."""
    names = getattr(inspect.unwrap(module.forward), "__globals__", {})
    if "len" in names:
        yield
        return

    def length(value: Any) -> Any:
        if isinstance(value, fx.Proxy):
            made = tracer.create_proxy("call_function", len, (value,), {})
            made.node.meta["is_wrapped"] = True  # unpickling traces the generated code again
            return made
        return len(value)

    names["len"] = length
    try:
        yield
    finally:
        del names["len"]


@contextmanager
def _guarded(frame: Frame) -> Iterator[None]:
    """Refuse backward functions of one's own and attributes that forward sets."""
    functions: Any = torch.autograd.Function
    apply = functions.__dict__["apply"]

    def applied(cls: Any, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        raise UnsupportedError(
            f"{named(frame)} calls {cls.__name__}, an autograd Function whose backward a graph "
            "would lose", _HINT,
        )  # fmt: skip

    module = frame.module
    before, buffers = dict(vars(module)), dict(module._buffers)
    contents = own_contents(module)
    held = {k: (b, b._version, b.clone()) for k, b in buffers.items() if b is not None}
    functions.apply = classmethod(applied)
    try:
        yield
        set_ = [k for k, v in vars(module).items() if before.get(k, module) is not v]
        set_ += [k for k, v in module._buffers.items() if buffers.get(k) is not v]
        # a BatchNorm counts its batches; with its norm the counter goes, too
        counter = "num_batches_tracked" if isinstance(module, _BatchNorm) else ""
        set_ += [k for k, (b, version, _) in held.items()
                 if b._version != version and k != counter]  # fmt: skip
        if set_:
            raise UnsupportedError(f"{named(frame)} assigns self.{set_[0]}", _HINT)
        filled = changed_content(module, contents)
        if filled:
            raise UnsupportedError(f"{named(frame)} changes what self.{filled} holds", _HINT)
    finally:
        functions.apply = apply
        vars(module).clear()
        vars(module).update(before)
        module._buffers.clear()
        module._buffers.update(buffers)
        for b, version, value in held.values():
            if b._version != version:
                b.data.copy_(value)


def _trace(frame: Frame, training: bool) -> fx.Graph:
    """The graph of a forward; whole numbers that it gets stay open where it only hands them on."""
    if any(type(v) is int for v in (*frame.given[0], *frame.given[1].values())):
        with suppress(UnsupportedError):
            return _traced(frame, training, sizes=True)
    return _traced(frame, training, sizes=False)


def _traced(frame: Frame, training: bool, *, sizes: bool) -> fx.Graph:
    module = frame.module
    tracer = _Own(module, frame, sizes=sizes)
    with (mode(module, training), unchanged(module), _unchecked(module), _guarded(frame),
          _no_contexts(frame), _lengths(tracer, module), _Factories(tracer)):  # fmt: skip
        try:
            graph = tracer.trace(module)
        except UnsupportedError:
            raise
        except Exception as error:
            where, text = obstacle(error)
            raise UnsupportedError(
                f"{named(frame)} cannot be written as a graph{where}: {text}", _HINT
            ) from error
    graph._tracer_cls = None  # unpickling makes torch's own
    for node in graph.nodes:  # 0 + x is x + 0, as the call is seen when it runs
        if node.target in (operator.add, operator.mul) and not isinstance(node.args[0], fx.Node):
            node.args = node.args[::-1]
    return graph


def own_graph(frame: Frame) -> fx.GraphModule:
    """A GraphModule that does what the called module's forward does, in both modes.

    Children, parameters, buffers, hooks and plain attributes are those of the module.

    Raises:
        UnsupportedError: the forward cannot be written as one graph; names the line.
    """
    module = frame.module
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        raise UnsupportedError(f"{named(frame)} has hooks, which copies of a graph lose", _HINT)
    live, still = _trace(frame, True), _trace(frame, False)
    numbers = _by_mode(frame, live, still)
    still._tracer_cls = None  # what is unpickled is traced by torch's own
    gm = fx.GraphModule(module, still, type(module).__name__)
    _complete(gm, module)
    _place_numbers(gm, numbers)
    gm.recompile()
    return gm


Place = tuple[int, int | str]


def _by_mode(frame: Frame, live: fx.Graph, still: fx.Graph) -> dict[Place, tuple[Any, Any]]:
    """Plain arguments that differ between the modes; any other difference is refused."""
    a, b = list(live.nodes), list(still.nodes)
    same = len(a) == len(b) and all(
        (x.op, x.target) == (y.op, y.target) for x, y in zip(a, b, strict=True)
    )
    found: dict[Place, tuple[Any, Any]] = {}
    for number, (x, y) in enumerate(zip(a, b, strict=same)):
        pairs: list[tuple[int | str, Any]] = [*enumerate(zip(x.args, y.args, strict=False))]
        pairs += [(k, (v, y.kwargs.get(k))) for k, v in x.kwargs.items()]
        for key, (one, other) in pairs:
            if str(one) == str(other):
                continue
            same = same and _is_plain(one) and _is_plain(other)
            found[number, key] = one, other
    if not same:
        raise UnsupportedError(
            f"{named(frame)} computes something else in training mode than in eval mode: one "
            "graph cannot hold both", _HINT,
        )  # fmt: skip
    return found


def _place_numbers(gm: fx.GraphModule, numbers: dict[Place, tuple[Any, Any]]) -> None:
    nodes = list(gm.graph.nodes)
    made: dict[tuple[Any, Any], fx.Node] = {}
    first = next(n for n in nodes if n.op != "placeholder")
    for (number, key), pair in numbers.items():
        if pair not in made:
            module = TrainingFlag() if pair == (True, False) else ByMode(*pair)
            module.training = gm.training
            path = "training_flag"
            while hasattr(gm, path):
                path += "_"
            gm.add_submodule(path, module)
            with gm.graph.inserting_before(first):
                made[pair] = gm.graph.call_module(path, ())
        if isinstance(key, int):
            nodes[number].update_arg(key, made[pair])
        else:
            nodes[number].update_kwarg(key, made[pair])


def _complete(gm: fx.GraphModule, module: nn.Module) -> None:
    """Give the graph what else the module holds: parameters, children, hooks, attributes."""
    keep_the_rest(gm, module)
    for name, child in module._modules.items():
        if child is not None:
            gm._modules[name] = child
    order = {name: i for i, name in enumerate(module._modules)}
    gm._modules = dict(sorted(gm._modules.items(), key=lambda kv: order.get(kv[0], len(order))))
    gm.training = module.training
    for name in _HOOKS:
        if name in vars(module):
            vars(gm)[name] = vars(module)[name]
    for name, value in vars(module).items():
        if name not in vars(gm) and not name.startswith("_") and name != "forward":
            vars(gm)[name] = value


def as_chain(gm: fx.GraphModule) -> nn.Module | None:
    """The nn.Sequential that does what a graph does, where that calls its children one by one.

    Children keep their names, hooks and modes move along; assertions on the value go.
    """
    nodes = [n for n in gm.graph.nodes if n.op != "placeholder" and n.target is not torch._assert]
    chain = [n for n in nodes if n.op == "call_module"]
    value: Any = next(iter(gm.graph.nodes))
    for node in chain:
        if list(node.args) != [value] or node.kwargs or node.target not in gm._modules:
            return None
        value = node
    output = next(n for n in nodes if n.op == "output")
    rest = {n for n in nodes if n.op not in ("call_module", "output")}
    if output.args != (value,) or any(u not in rest and u.target is not torch._assert
                                      for n in rest for u in n.users):  # fmt: skip
        return None
    names = [str(n.target) for n in chain]
    held = [*gm._parameters.values(), *gm._buffers.values()]
    if len(set(names)) < len(names) or set(names) != set(gm._modules) or any(
        t is not None for t in held
    ):
        return None
    made = nn.Sequential(OrderedDict((name, gm.get_submodule(name)) for name in names))
    made.training = gm.training
    for name in _HOOKS:
        if name != "_non_persistent_buffers_set":
            vars(made)[name] = vars(gm)[name]
    return made


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put a module in the place of another wherever the root holds it; returns the root."""
    if root is old:
        return new
    for holder in list(root.modules()):
        for name, child in holder._modules.items():
            if child is old:
                holder._modules[name] = new
    return root
