"""nn.Module, GraphModule or ExportedProgram -> a torch.fx.GraphModule of its own, to be edited."""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize, rnn

from bnpass.errors import UnsupportedError
from bnpass.frontends.fx.copying import check_module, duplicate
from bnpass.frontends.fx.modules import TrainingFlag

FLAG = "training_flag"
"""Path of the :class:`TrainingFlag` that a traced graph may get."""


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


def trace(model: Any) -> fx.GraphModule:
    """A GraphModule that shares nothing with ``model``.

    A GraphModule is copied, a program unlifted, a module traced symbolically. Parameters, buffers,
    their paths, training flags and hooks of leaf modules are kept.

    Raises:
        UnsupportedError: the module cannot be traced; names the line.
        InputError: a module whose parameters are not made yet, or something that is no module.
    """
    if isinstance(model, torch.export.ExportedProgram):
        return _live(_unlifted(model))
    copied = duplicate(check_module(model))
    if isinstance(copied, fx.GraphModule):
        return _plain(copied) if "train" in vars(copied) else copied
    try:
        return _symbolic(copied)
    except Exception as error:
        raise _untraceable(error) from error


# --- symbolic tracing --------------------------------------------------------------------------


def _symbolic(module: nn.Module) -> fx.GraphModule:
    root = type(module).__name__
    graph = Tracer().trace(module)
    flags = _mode_flags(module, graph)
    gm = fx.GraphModule(module, graph, root)
    keep_the_rest(gm, module)
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


def keep_the_rest(gm: fx.GraphModule, module: nn.Module) -> None:
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
    with warnings.catch_warnings():  # torch's own classes, as the copy makes them
        warnings.filterwarnings("ignore", message=".*treespec", category=FutureWarning)
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
    keep_the_rest(plain, gm)
    plain.meta.update(getattr(gm, "meta", {}))
    plain.recompile()
    return plain


def _live(gm: fx.GraphModule) -> fx.GraphModule:
    """Let dropout and the like of an exported program follow the mode, whichever it was made in."""
    places: list[Place] = []
    training = False
    for number, node in enumerate(gm.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        names = [a.name for a in schema.arguments] if schema is not None else []
        for i, name in enumerate(names):
            if name in ("train", "training") and i < len(node.args):
                places.append((number, i))
                training = training or node.args[i] is True
    gm.train(training)
    if places:
        _follow_mode(gm, places)
    return gm


def obstacle(error: Exception) -> tuple[str, str]:
    """`` at FILE:LINE: TEXT`` of the user's line at which tracing stopped, and the error's text."""
    inside = str(Path(torch.__file__).parent)
    ours = str(Path(__file__).parent)
    frames = [
        f for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith((inside, ours, "<"))
    ]  # fmt: skip
    where = f" at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    return where, str(error).splitlines()[0] if str(error) else type(error).__name__


def _untraceable(error: Exception) -> UnsupportedError:
    """The error, with the line of the user's code at which tracing stopped."""
    if isinstance(error, UnsupportedError):
        return error
    where, text = obstacle(error)
    return UnsupportedError(
        f"the module cannot be traced{where}: {text}",
        "trace it yourself, or leave what stops it out",
    )
