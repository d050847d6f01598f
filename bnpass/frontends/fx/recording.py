"""Runs a module once and writes down what it computes: the torch calls, and who makes them.

Nothing is traced symbolically: the user's Python runs, with its loops, branches and hooks, on
tensors without data where that works. Modules of torch are single operators, other modules are
:class:`Frame` s, so that every value is known by the module whose output or input it is.
"""

from __future__ import annotations

import operator
import threading
import traceback
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from bnpass.errors import UnsupportedError
from bnpass.frontends.fx.hooks import TOUCHED, computes_weights
from bnpass.frontends.fx.info import META, Infos
from bnpass.frontends.fx.info import describe as _described
from bnpass.frontends.fx.inputs import Example
from bnpass.frontends.fx.structure import tensors_in

FRAME = "bnpass_frame"
"""Node meta: the :class:`Frame` in which a call was made."""

ORIGIN = "bnpass_origin"
"""Node meta: the node of the frame's GraphModule that made it, where the frame runs one."""

LINE = "bnpass_line"
"""Node meta: the user's line that made a call, where :data:`noting_lines` asks for it."""

noting_lines: ContextVar[bool] = ContextVar("noting_lines", default=False)
"""Whether recordings note lines: it takes a while."""

CALL = "bnpass_call"
"""Node meta: of a module that is one node, its :class:`Frame`."""

_OPEN = (nn.Sequential, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.TransformerDecoder,
         nn.TransformerDecoderLayer, nn.Transformer)  # fmt: skip
"""Modules of torch that are looked into."""

_DATA = frozenset(
    {"__bool__", "__int__", "__float__", "__index__", "__complex__", "item", "tolist", "numpy",
     "__array__", "is_nonzero", "equal", "allclose"}
)  # fmt: skip
"""Functions through which numbers leave the graph for Python."""

_SWAPPED = {
    "__rsub__": operator.sub, "__rdiv__": operator.truediv, "__rtruediv__": operator.truediv,
    "__rpow__": operator.pow, "__rmatmul__": operator.matmul, "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod,
}  # fmt: skip
_PLAIN: dict[str, Callable[..., Any]] = {
    "__getitem__": operator.getitem, "__setitem__": operator.setitem,
    "__floordiv__": operator.floordiv, "__eq__": operator.eq, "__ne__": operator.ne,
}  # fmt: skip

_lock = threading.RLock()  # torch's classes are patched while one recording runs


@dataclass(eq=False)
class Frame:
    """One call of a module.

    Attributes:
        module, path: what is called; the first path where it has several.
        parent: the call inside of which it happens; None for the root's.
        node: of a module that is one operator: its node.
        args: the values that come in, by position or keyword; None for what is no tensor.
        output: the value that comes out, its hooks' work included; None for what is no tensor.
        phase: ``before``, ``forward`` or ``behind``: where the call is, or was for its last node.
        direct: ``forward`` was called, without hooks.
        origin: the node of the parent's GraphModule that made the call.
        at: that of its own GraphModule which runs now.
        touched: hooks of the module read or write its own weights.
        given: the arguments as they came, without tensors.
    """

    module: nn.Module
    path: str
    parent: Frame | None
    node: fx.Node | None = None
    args: dict[int | str, fx.Node | None] = field(default_factory=dict)
    output: fx.Node | None = None
    phase: str = "before"
    direct: bool = False
    origin: fx.Node | None = None
    at: fx.Node | None = None
    touched: bool = False
    given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def within(self, other: Frame) -> bool:
        """Whether this call happens inside of another, or is it."""
        frame: Frame | None = self
        while frame is not None and frame is not other:
            frame = frame.parent
        return frame is other


class Recorded(nn.Module):
    """A module with the graph of one of its runs; it shares everything with the module."""

    graph: fx.Graph

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        for name in ("_parameters", "_buffers", "_modules"):
            vars(self)[name] = vars(root)[name]
        for name, value in vars(root).items():
            if isinstance(value, torch.Tensor):
                vars(self)[name] = value
        self.training = root.training
        vars(self)["graph"] = graph


@dataclass(eq=False)
class Recording:
    """What one run of a module was.

    Attributes:
        root: the module.
        gm: the module with the graph, as :func:`bnpass.frontends.fx.read.read` takes it.
        frames: every call of a module, in the order of their beginnings.
    """

    root: nn.Module
    gm: Recorded
    frames: list[Frame]

    @property
    def calls(self) -> dict[int, list[Frame]]:
        """The calls of every module, by its id."""
        found: dict[int, list[Frame]] = {}
        for frame in self.frames:
            found.setdefault(id(frame.module), []).append(frame)
        return found


def is_single(module: nn.Module) -> bool:
    """Whether a module is one operator of the graph."""
    kind = type(module)
    if kind.__module__.startswith("bnpass.") or isinstance(module, torch.jit.ScriptModule):
        return True
    own = kind.__module__.startswith(("torch.nn", "torch.ao.nn"))
    if parametrize.is_parametrized(module):
        own = any(c.__module__.startswith("torch.nn.modules") for c in kind.__mro__[1:2])
    return own and not isinstance(module, _OPEN) and "forward" not in vars(module)


class Recorder(TorchFunctionMode):
    """Notes torch calls as nodes while it is entered."""

    def __init__(self, root: nn.Module, *, real: bool) -> None:
        super().__init__()
        self.root, self.real = root, real
        self.graph = fx.Graph()
        self.frames: list[Frame] = []
        self.stack: list[Frame] = []
        self.off = 0
        self.nodes: dict[int, fx.Node] = {}
        self.alive: list[Any] = []
        self.fed: set[fx.Node] = set()  # depend on the inputs
        self.paths: dict[int, str] = {}
        for path, module in root.named_modules():
            self.paths.setdefault(id(module), path)
        self.held = dict(_held_tensors(root))

    # --- values ----------------------------------------------------------------------------------

    def note(self, tensor: torch.Tensor, node: fx.Node) -> None:
        """This tensor is what a node makes from now on."""
        self.nodes[id(tensor)] = node
        self.alive.append(tensor)

    def lookup(self, tensor: torch.Tensor) -> fx.Node:
        """The node that has made a tensor; one of its own for what the network holds."""
        node = self.nodes.get(id(tensor))
        if node is None:
            node = self._foreign(tensor)
            self.note(tensor, node)
        return node

    def _foreign(self, tensor: torch.Tensor) -> fx.Node:
        path = self.held.get(id(tensor))
        if path is None and (self.real or isinstance(tensor, FakeTensor)):
            # made by something that is not seen here: it may depend on any value
            node = self._create("call_function", _unseen, tuple(self.graph.nodes), {})
            self.fed.add(node)
            node.meta[META] = describe(tensor)
            return node
        if path is None:
            path = f"_bnpass_constant{len(self.alive)}"
            vars(self.root).setdefault("_bnpass_constants", {})[path] = tensor
        with self.graph.inserting_after(self._last_head()):
            node = self.graph.get_attr(path)
        node.meta[META] = describe(tensor)
        node.meta[FRAME] = None
        return node

    def _last_head(self) -> fx.Node:
        last: Any = self.graph._root
        for node in self.graph.nodes:
            if node.op not in ("placeholder", "get_attr"):
                break
            last = node
        return last  # type: ignore[no-any-return]

    def plain(self, value: Any) -> Any:
        """Arguments of a node: nodes for tensors, in plain tuples, lists and dicts."""
        if isinstance(value, torch.Tensor):
            return self.lookup(value)
        if next(tensors_in(value), None) is None:
            return value
        if isinstance(value, dict):
            return {k: self.plain(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(*map(self.plain, (value.start, value.stop, value.step)))
        if isinstance(value, list | tuple):
            made = [self.plain(v) for v in value]
            return made if isinstance(value, list) else tuple(made)
        return tuple(self.lookup(t) for t in tensors_in(value))

    def _create(self, op: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
        node = self.graph.create_node(op, target, args, kwargs)
        top = self.stack[-1] if self.stack else None
        node.meta[FRAME] = top
        node.meta["bnpass_phase"] = top.phase if top is not None else "forward"
        node.meta[ORIGIN] = top.at if top is not None else None
        if noting_lines.get():
            node.meta[LINE] = user_line()
        if any(n in self.fed for n in node.all_input_nodes):
            self.fed.add(node)
        return node

    def made(self, node: fx.Node, value: Any) -> Any:
        """Tell a node what it makes; returns that, with tensors that are this node's own."""
        node.meta[META] = describe(value)
        if isinstance(value, torch.Tensor):
            self.note(value, node)
            return value
        self._parts(node, value)
        return value

    def _parts(self, node: fx.Node, value: Any) -> None:
        """A node for every element of a result."""
        if not isinstance(value, dict | list | tuple):
            return
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in items:
            if isinstance(one, torch.Tensor) or next(tensors_in(one), None) is not None:
                part = self._create("call_function", operator.getitem, (node, key), {})
                part.meta[META] = describe(one)
                if isinstance(one, torch.Tensor):
                    self.note(one, part)
                else:
                    self._parts(part, one)

    # --- functions -------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a torch function and note it."""
        del types
        kwargs = kwargs or {}
        if self.off:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        given = list(tensors_in((args, kwargs)))
        self._check_hook(given)
        if name in _DATA:
            self._check_data(given)
        before = {id(t) for t in given}
        inputs = self.plain(args), self.plain(kwargs)
        value = func(*args, **kwargs)
        found = list(tensors_in(value))
        if not found and name != "__setitem__":
            return value
        op, target, inputs = _called(func, name, *inputs)
        node = self._create(op, target, *inputs)
        if name == "__setitem__":
            node.meta[META] = describe(args[0])  # what it leaves in its target
            return value
        if isinstance(value, torch.Tensor) and id(value) in before and not _writes(name, kwargs):
            value = _alias(value)
        return self.made(node, value)

    def _check_hook(self, given: list[torch.Tensor]) -> None:
        top = self.stack[-1] if self.stack else None
        if top is None or top.phase == "forward":
            return
        own = {id(t) for t in tensors_in({k: v for k, v in vars(top.module).items()
                                          if k in ("_parameters", "_buffers")
                                          or isinstance(v, torch.Tensor)})}  # fmt: skip
        top.touched = top.touched or any(id(t) in own for t in given)

    def _check_data(self, given: list[torch.Tensor]) -> None:
        if any(self.lookup(t) in self.fed for t in given):
            raise UnsupportedError(
                f"the module computes in Python with numbers from its data{user_line()}",
                "what follows may differ from input to input; keep it in tensors (torch.where) or "
                "in a module of its own that is left out",
            )

    def opaque(self, function: Callable[..., Any], args: Any, kwargs: Any, call: Any) -> Any:
        """Note one call whose inside is not seen."""
        inputs = self.plain(args), self.plain(kwargs)
        given = {id(t) for t in tensors_in((args, kwargs))}
        self.off += 1
        try:
            value = call()
        finally:
            self.off -= 1
        if next(tensors_in(value), None) is None:
            return value
        node = self._create("call_function", function, *inputs)
        if isinstance(value, torch.Tensor) and id(value) in given:
            value = _alias(value)
        return self.made(node, value)

    # --- modules ---------------------------------------------------------------------------------

    def call(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A module is called."""
        if self.off or id(module) not in self.paths:
            return module._call_impl(*args, **kwargs)
        frame = self._enter(module, args, kwargs, direct=False)
        try:
            if isinstance(module, torch.jit.ScriptModule):
                value = self.single(module, partial(module._call_impl), args, kwargs)
            else:
                value = module._call_impl(*args, **kwargs)
        finally:
            self.stack.pop()
        self._leave(frame, value)
        return value

    def _enter(self, module: nn.Module, args: Any, kwargs: Any, *, direct: bool) -> Frame:
        parent = self.stack[-1] if self.stack else None
        frame = Frame(module, self.paths[id(module)], parent, direct=direct)
        frame.origin = parent.at if parent is not None else None
        for key, value in (*enumerate(args), *kwargs.items()):
            frame.args[key] = self.lookup(value) if isinstance(value, torch.Tensor) else None
        plain = {k: _plain(v) for k, v in kwargs.items()}
        frame.given = tuple(map(_plain, args)), plain
        self.frames.append(frame)
        self.stack.append(frame)
        return frame

    def _leave(self, frame: Frame, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            frame.output = self.lookup(value)
        if frame.node is not None:
            frame.node.meta[TOUCHED] = frame.touched

    def forward(self, module: nn.Module, original: Any, *args: Any, **kwargs: Any) -> Any:
        """``forward`` of a module runs, behind its pre-hooks or called by itself."""
        if self.off:
            return original(*args, **kwargs)
        top = self.stack[-1] if self.stack else None
        direct = top is None or top.module is not module or top.phase != "before"
        frame = self._enter(module, args, kwargs, direct=True) if direct else self.stack[-1]
        frame.phase = "forward"
        try:
            if is_single_now(module):
                value = self.single(module, original, args, kwargs)
            elif isinstance(module, fx.GraphModule):
                value = _Steps(self, module, frame).start(args, kwargs)
            else:
                value = original(*args, **kwargs)
        finally:
            frame.phase = "behind"
            if direct:
                self.stack.pop()
        if direct:
            self._leave(frame, value)
        return value

    def single(self, module: nn.Module, original: Any, args: Any, kwargs: Any) -> Any:
        """A module that is one node."""
        frame = self.stack[-1]
        inputs = self.plain(args), self.plain(kwargs)
        given = {id(t) for t in tensors_in((args, kwargs))}
        self.off += 1
        try:
            value = original(*args, **kwargs)
        finally:
            self.off -= 1
        self.stack.pop()  # the node belongs to whoever calls
        parent_at = frame.origin
        node = self._create("call_module", frame.path, *inputs)
        self.stack.append(frame)
        node.meta[ORIGIN] = parent_at
        node.meta[CALL] = frame
        frame.node = node
        same = isinstance(value, torch.Tensor) and id(value) in given
        if same and not getattr(module, "inplace", False):
            value = _alias(value)
        return self.made(node, value)


class _Tensors:
    """Stands for an argument that holds tensors."""


def _plain(value: Any) -> Any:
    return value if next(tensors_in(value), None) is None else _Tensors()


def is_single_now(module: nn.Module) -> bool:
    """:func:`is_single` while ``forward`` is patched."""
    return bool(vars(module).get("_bnpass_single", False))


class _Steps(fx.Interpreter):
    """Runs a GraphModule of the network node by node, so that calls are known by their nodes."""

    def __init__(self, recorder: Recorder, gm: fx.GraphModule, frame: Frame) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.recorder, self.frame = recorder, frame
        self.extra_traceback = False

    def start(self, args: Any, kwargs: Any) -> Any:
        """The module's result."""
        import inspect

        gm: Any = self.module
        bound = inspect.signature(type(gm).forward).bind(gm, *args, **kwargs)
        bound.apply_defaults()
        given = list(bound.arguments.values())[1:]
        process: Any = gm.graph.process_inputs
        value = self.run(*process(*given), enable_io_processing=False)
        return gm.graph.process_outputs(value)

    def run_node(self, n: fx.Node) -> Any:
        """One node."""
        self.frame.at = n
        try:
            return super().run_node(n)
        finally:
            self.frame.at = None


def describe(value: Any) -> Infos:
    """Shapes and types, found without the recorder's noticing."""
    with torch._C.DisableTorchFunction():
        return _described(value)


def _unseen(*values: Any) -> Any:
    """Stands for code that is not seen."""
    return values


def _alias(value: torch.Tensor) -> torch.Tensor:
    """The same tensor as another object."""
    with torch._C.DisableTorchFunction():
        return value.view_as(value)


def _writes(name: str, kwargs: dict[str, Any]) -> bool:
    ends = name.endswith("_") and not name.endswith("__")
    return ends or name.startswith("__i") or bool(kwargs.get("inplace")) or "out" in kwargs


def _called(func: Any, name: str, args: Any, kwargs: Any) -> tuple[str, Any, tuple[Any, Any]]:
    """(op, target, (args, kwargs)) of a torch function."""
    if name == "__get__":
        prop = str(getattr(func.__self__, "__name__", "?"))
        if prop == "data":
            return "call_method", "detach", ((args[0],), {})
        return "call_function", getattr, ((args[0], prop), {})
    if name in _SWAPPED:
        return "call_function", _SWAPPED[name], ((args[1], args[0]), {})
    if name in _PLAIN:
        return "call_function", _PLAIN[name], (tuple(args), kwargs)
    if type(func).__name__ in ("method_descriptor", "wrapper_descriptor"):
        return "call_method", name, (tuple(args), kwargs)
    if getattr(func, "__module__", "") == "torch._tensor":
        return "call_method", name, (tuple(args), kwargs)
    return "call_function", func, (tuple(args), kwargs)


def _held_tensors(root: nn.Module) -> Iterator[tuple[int, str]]:
    """(id, path) of parameters, buffers and other tensors that modules hold."""
    for path, module in root.named_modules():
        start = f"{path}." if path else ""
        plain = {k: v for k, v in vars(module).items() if isinstance(v, torch.Tensor)}
        for table in (plain, module._buffers, module._parameters):
            for name, tensor in table.items():
                if tensor is not None:
                    yield id(tensor), start + name


def user_line() -> str:
    """`` at FILE:LINE: TEXT`` of the innermost line that is neither torch's nor bnpass's."""
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith(inside)]
    if not frames:
        return ""
    last = frames[-1]
    return f" at {last.filename}:{last.lineno}: {last.line}"


# --- around a recording --------------------------------------------------------------------------


@contextmanager
def unchanged(root: nn.Module) -> Iterator[None]:
    """Put attributes, parameters, buffers, submodules, hooks and caches back as they were."""
    held = [(module, dict(vars(module)), _contents(module)) for module in root.modules()]
    try:
        yield
    finally:
        for module, whole, inner in held:
            vars(module).clear()
            vars(module).update(whole)
            for name, content in inner.items():
                _refill(vars(module)[name], content)


_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)


def _contents(module: nn.Module) -> dict[str, Any]:
    """Copies of the containers among a module's attributes."""
    return {k: _container(v) for k, v in vars(module).items() if type(v) in _CONTAINERS}


def own_contents(module: nn.Module) -> dict[str, Any]:
    """The same of those that are a class's own, not torch's parameters, buffers and hooks."""
    torchs = vars(nn.Module())
    return {name: held for name, held in _contents(module).items() if name not in torchs}


def changed_content(module: nn.Module, before: dict[str, Any]) -> str:
    """The name of a container whose content is another one than before; empty: of none."""
    def same(now: Any, then: Any) -> bool:
        if len(now) != len(then):
            return False
        if isinstance(then, dict):
            return all(k in now and now[k] is v for k, v in then.items())
        if isinstance(then, list):
            return all(a is b for a, b in zip(now, then, strict=True))
        return bool(now == then)

    held = vars(module)
    return next((k for k, then in before.items() if k in held and not same(held[k], then)), "")


def _container(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else type(value)(value)


def _refill(held: Any, content: Any) -> None:
    held.clear()
    if isinstance(held, list):
        held.extend(content)
    else:
        held.update(content)


@contextmanager
def _patched(recorder: Recorder) -> Iterator[None]:
    """Let calls of the root's modules, and of autograd Functions, pass by the recorder."""
    modules: Any = nn.Module
    functions: Any = torch.autograd.Function
    call, apply = modules.__call__, functions.__dict__["apply"]

    def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return recorder.call(module, args, kwargs)

    def applied(cls: Any, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            return apply.__get__(None, cls)(*args, **kwargs)

        return run() if recorder.off else recorder.opaque(cls.apply, args, kwargs, run)

    with _lock, ExitStack() as stack:
        for module in recorder.root.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            vars(module)["_bnpass_single"] = module is not recorder.root and is_single(module)
            vars(module)["forward"] = partial(recorder.forward, module, module.forward)
            for key, hook in list(module._forward_pre_hooks.items()):
                if computes_weights(hook):
                    module._forward_pre_hooks[key] = partial(_quiet, recorder, hook)
        modules.__call__ = called
        stack.callback(setattr, modules, "__call__", call)
        functions.apply = classmethod(applied)
        stack.callback(setattr, functions, "apply", apply)
        yield


def _quiet(recorder: Recorder, hook: Callable[..., Any], *args: Any) -> Any:
    recorder.off += 1
    try:
        return hook(*args)
    finally:
        recorder.off -= 1


def record(root: nn.Module, example: Example, *, real: bool) -> Recording:
    """Run a module once, in its mode, and write down what it does.

    Args:
        root: left as it was, buffers included (the caller copies those that it writes into).
        example: what ``forward`` gets; tensors are not changed.
        real: the tensors hold data, so that others may come from anywhere.
    """
    with unchanged(root):
        recorder = Recorder(root, real=real)
        for number, tensor in enumerate(example.tensors):
            if id(tensor) not in recorder.nodes:
                node = recorder.graph.placeholder(_input_name(example, tensor, number))
                node.meta[META] = describe(tensor)
                node.meta[FRAME] = None
                recorder.fed.add(node)
                recorder.note(tensor, node)
        with _patched(recorder), recorder:
            value = recorder.call(root, example.args, example.kwargs)
        _finish(recorder, root, value)
        gm = Recorded(root, recorder.graph)
        for name, tensor in vars(root).pop("_bnpass_constants", {}).items():
            vars(gm)[name] = tensor
    return Recording(root, gm, recorder.frames)


def _input_name(example: Example, tensor: torch.Tensor, number: int) -> str:
    named = [k for k, v in example.kwargs.items() if v is tensor]
    return named[0] if named else f"x{number}" if number else "x"


def _finish(recorder: Recorder, root: nn.Module, value: Any) -> None:
    """The outputs: what comes back, and what the run has left in the modules."""
    found = list(tensors_in(value))
    if not found:
        raise UnsupportedError(
            f"{type(root).__name__} returns a {type(value).__name__} without tensors",
            "return tensors, in tuples, dicts or dataclasses",
        )
    nodes = [recorder.lookup(t) for t in found]
    for module in root.modules():
        for name, left in vars(module).items():
            tables = name in ("_buffers", "_parameters")
            if tables or not name.startswith("_"):
                stored = left if tables or not callable(left) else None
                known = [recorder.nodes[id(t)] for t in tensors_in(stored, 3)
                         if id(t) in recorder.nodes]  # fmt: skip
                nodes += [n for n in known if n.op not in ("get_attr", "placeholder")]
    recorder.graph.output(tuple(dict.fromkeys(nodes)))
