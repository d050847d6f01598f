"""nn.Module, GraphModule or ExportedProgram -> a torch.fx.GraphModule of its own, to be edited."""

from __future__ import annotations

import copy
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize, rnn

from bnpass.errors import InputError, UnsupportedError
from bnpass.frontends.fx.modules import TrainingFlag

FLAG = "training_flag"
"""Path of the :class:`TrainingFlag` that a traced graph may get."""

_LIVE = frozenset({"dropout", "batch_norm", "alpha_dropout", "feature_dropout"})


class Tracer(fx.Tracer):
    """Keeps torch's own modules, parametrized ones and those of bnpass as single nodes.

    The functions that pack sequences are nodes too: torch cannot trace into them.
    """

    def __init__(self) -> None:
        modules: tuple[Any, ...] = (math, rnn)
        super().__init__(autowrap_modules=modules)

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        """A graph without marks that only torch's decorator for functions may leave."""
        graph = super().trace(*args, **kwargs)
        for node in graph.nodes:
            if getattr(node.target, "__module__", "") == rnn.__name__:
                node.meta.pop("is_wrapped", None)
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        own = type(m).__module__.startswith("bnpass.")
        base = super().is_leaf_module(m, module_qualified_name)
        return own or base or (parametrize.is_parametrized(m) and _torch_class(m))


def _torch_class(m: nn.Module) -> bool:
    return any(c.__module__.startswith("torch.nn.modules") for c in type(m).__mro__[1:2])


def trace(model: Any, example_inputs: tuple[Any, ...] | None = None) -> fx.GraphModule:
    """A GraphModule that shares nothing with ``model``.

    An nn.Module is traced symbolically; where that fails (control flow that depends on data) and
    example inputs are there, it goes through torch.export. Parameters, buffers, their paths,
    training flags and hooks of leaf modules are kept.

    Raises:
        UnsupportedError: the module can be captured in neither way; names the line.
        InputError: a module whose parameters are not made yet, or something that is no module.
    """
    if isinstance(model, torch.export.ExportedProgram):
        return _unlifted(model)
    if not isinstance(model, nn.Module):
        raise InputError(f"{type(model).__name__} is no torch module", "give an nn.Module")
    _check_initialized(model)
    copied = duplicate(model)
    if isinstance(copied, fx.GraphModule):
        return _plain(copied) if "train" in vars(copied) else copied
    try:
        return _symbolic(copied)
    except Exception as error:
        if example_inputs is None:
            raise _untraceable(error) from error
        return _exported(copied, example_inputs, error)


def duplicate(module: nn.Module) -> nn.Module:
    """A deep copy; weights that a hook computes (old weight_norm) are copied as plain tensors."""
    held: list[tuple[nn.Module, str, Any]] = []
    for m in module.modules():
        for name, value in vars(m).items():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                held.append((m, name, value))
            elif name == "_flat_weights" and not all(w is None or w.is_leaf for w in value):
                held.append((m, name, value))  # a recurrent module's list, made anew by the copy
    try:
        for m, name, value in held:
            vars(m)[name] = [] if isinstance(value, list) else value.detach()
        copied = copy.deepcopy(module)
    finally:
        for m, name, value in held:
            vars(m)[name] = value
    for m in copied.modules():
        if isinstance(m, nn.RNNBase):
            m.flatten_parameters()  # cuDNN warns of weights that lie apart, as a copy's do
    return copied


def _check_initialized(model: nn.Module) -> None:
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if torch.nn.parameter.is_lazy(value):
            raise InputError(f"{name!r} has no shape yet", "run the module once on an example")


# --- symbolic tracing --------------------------------------------------------------------------


def _symbolic(module: nn.Module) -> fx.GraphModule:
    root = type(module).__name__
    graph = Tracer().trace(module)
    flags = _mode_flags(module, graph)
    gm = fx.GraphModule(module, graph, root)
    _keep_the_rest(gm, module)
    if flags:
        _follow_mode(gm, flags)
    return gm


@contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    """The whole module in training or eval mode for a while; every flag is put back."""
    before = {m: m.training for m in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for m, flag in before.items():
            m.training = flag


Place = tuple[int, int | str]
"""(number of a node, position or keyword of an argument)."""


def _mode_flags(module: nn.Module, graph: fx.Graph) -> list[Place]:
    """Arguments that are True in training mode and False in eval mode."""
    graphs = []
    for training in (True, False):
        try:
            with mode(module, training):
                graphs.append(list(Tracer().trace(module).nodes))
        except Exception:  # noqa: BLE001 - a mode that cannot be traced has nothing to compare
            return []
    live, still = graphs
    same = len(live) == len(still) == len(graph.nodes)
    if not same or any((a.op, a.target) != (b.op, b.target) for a, b in zip(*graphs, strict=True)):
        return []
    found: list[Place] = []
    for number, (a, b) in enumerate(zip(live, still, strict=True)):
        pairs = [*enumerate(zip(a.args, b.args, strict=False))]
        named = [(k, (v, b.kwargs.get(k))) for k, v in a.kwargs.items()]
        for key, (one, other) in [*pairs, *named]:
            if one is True and other is False:
                found.append((number, key))
    return found


def _follow_mode(gm: fx.GraphModule, places: list[Place]) -> None:
    """Replace flags that tracing has frozen by one that follows train() and eval()."""
    path = FLAG
    while hasattr(gm, path):
        path += "_"
    flag = TrainingFlag()
    flag.training = gm.training
    gm.add_submodule(path, flag)
    nodes = list(gm.graph.nodes)
    first = next(n for n in nodes if n.op != "placeholder")
    with gm.graph.inserting_before(first):
        value = gm.graph.call_module(path, ())
    for number, key in places:
        if isinstance(key, int):
            nodes[number].update_arg(key, value)
        else:
            nodes[number].update_kwarg(key, value)
    gm.recompile()


def _keep_the_rest(gm: fx.GraphModule, module: nn.Module) -> None:
    """Attach what the graph does not use, so that an old state_dict loads; set training flags."""
    here = {name for name, _ in gm.named_parameters(remove_duplicate=False)}
    here |= {name for name, _ in gm.named_buffers(remove_duplicate=False)}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name not in here:
            owner(gm, name).register_parameter(name.rpartition(".")[2], parameter)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        if name not in here:
            holder, leaf = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            persistent = leaf not in holder._non_persistent_buffers_set
            owner(gm, name).register_buffer(leaf, buffer, persistent=persistent)
        else:
            _same_persistence(gm, module, name)
    flags = {name: m.training for name, m in module.named_modules(remove_duplicate=False)}
    for name, m in gm.named_modules(remove_duplicate=False):
        m.training = flags.get(name, m.training)


def _same_persistence(gm: fx.GraphModule, module: nn.Module, name: str) -> None:
    path, _, leaf = name.rpartition(".")
    if leaf in module.get_submodule(path)._non_persistent_buffers_set:
        gm.get_submodule(path)._non_persistent_buffers_set.add(leaf)


def owner(gm: nn.Module, path: str) -> nn.Module:
    """The module that holds the attribute ``path``; containers that are missing are made."""
    at = gm
    for part in path.split(".")[:-1]:
        inner = at._modules.get(part)
        if inner is None:
            inner = nn.Module()
            inner.training = gm.training
            at.add_module(part, inner)
        at = inner
    return at


# --- torch.export ------------------------------------------------------------------------------


def _unlifted(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """A program as a module with its own copy of parameters and buffers."""
    try:
        gm = program.module(check_guards=False)
    except TypeError:  # before torch 2.10
        gm = program.module()
    copied = duplicate(gm)
    assert isinstance(copied, fx.GraphModule)
    return _plain(copied)


def _plain(gm: fx.GraphModule) -> fx.GraphModule:
    """The same as a GraphModule whose train() and eval() work."""
    for node in [n for n in gm.graph.nodes if n.op == "call_module" and not n.users]:
        if str(node.target).startswith("_guards"):
            gm.graph.erase_node(node)
            gm.delete_submodule(str(node.target))
    for name in ("train", "eval"):  # torch.export lets both of them raise
        vars(gm).pop(name, None)
    gm.eval()
    plain = fx.GraphModule(gm, gm.graph, type(gm).__name__)
    plain.graph._codegen = gm.graph._codegen
    _keep_the_rest(plain, gm)
    plain.meta.update(getattr(gm, "meta", {}))
    plain.recompile()
    return plain


def _exported(module: nn.Module, inputs: tuple[Any, ...], why: Exception) -> fx.GraphModule:
    training = module.training
    with mode(module, False):
        program = _export(module, inputs, why)
    gm = _unlifted(program)
    places: list[Place] = []
    for number, node in enumerate(gm.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is None or schema.name.rpartition("::")[2] not in _LIVE:
            continue
        names = [a.name for a in schema.arguments]
        places += [(number, i) for i, n in enumerate(names) if n in ("train", "training")]
    gm.train(training)
    if places:
        _follow_mode(gm, places)
    return gm


def _export(
    module: nn.Module, inputs: tuple[Any, ...], why: Exception
) -> torch.export.ExportedProgram:
    attempts: list[Exception] = []
    auto = torch.export.Dim.AUTO
    free = tuple({0: auto} if isinstance(x, torch.Tensor) and x.dim() else None for x in inputs)
    for shapes in (free, None):
        try:
            return torch.export.export(module, inputs, dynamic_shapes=shapes)
        except Exception as error:  # noqa: BLE001 - whatever the user's forward raises
            attempts.append(error)
    raise _untraceable(why) from why


def _untraceable(error: Exception) -> UnsupportedError:
    """The error, with the line of the user's code at which tracing stopped."""
    if isinstance(error, UnsupportedError):
        return error
    inside = str(Path(torch.__file__).parent)
    ours = str(Path(__file__).parent)
    frames = [
        f for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith((inside, ours, "<"))
    ]  # fmt: skip
    where = f" at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UnsupportedError(
        f"the module cannot be traced{where}: {text}",
        "give example_inputs, so that torch.export can be tried, or trace it yourself",
    )
