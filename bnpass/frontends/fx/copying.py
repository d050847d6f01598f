"""Copies of modules that keep what torch's own deepcopy loses, and the module inside a wrapper."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from bnpass.errors import InputError, UnsupportedError
from bnpass.frontends.fx.structure import tensors_in
from bnpass.nn.distributed import world

log = logging.getLogger("bnpass.torch")

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
          "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_hooks",
          "_backward_pre_hooks")  # fmt: skip


BY_RANK = "differ by rank until bnpass.calibrate"


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel, torch.compile, AveragedModel.

    Raises:
        UnsupportedError: the parameters are sharded over processes.
    """
    averaged = torch.optim.swa_utils.AveragedModel
    kinds = (nn.DataParallel, nn.parallel.DistributedDataParallel, averaged)
    inside: Any = module
    while isinstance(inside, kinds) or hasattr(inside, "_orig_mod"):
        log.info("%s is taken off: the module inside is edited", type(inside).__name__)
        if isinstance(inside, nn.parallel.DistributedDataParallel) and world() > 1:
            log.warning("running statistics %s", BY_RANK)
        inside = inside.module if isinstance(inside, kinds) else inside._orig_mod
    module = inside
    sharded = any(type(p).__name__ == "DTensor" for p in module.parameters())
    if sharded or "FullySharded" in type(module).__name__:
        raise UnsupportedError(
            "the parameters are sharded over processes",
            "insert before fully_shard; to fold, load a full state_dict into an unsharded copy",
        )
    return module


def check_module(model: Any) -> nn.Module:
    """The module to edit, or why it cannot be.

    Raises:
        InputError: no module, or one whose parameters are not made yet.
        UnsupportedError: a TorchScript module.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"{type(model).__name__} is no torch module", "give an nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedError(
            "a TorchScript module holds compiled code that cannot be edited",
            "give the nn.Module that it was scripted or traced from",
        )
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if torch.nn.parameter.is_lazy(value):
            raise InputError(f"{name!r} has no shape yet", "run the module once on an example")
    return model


def duplicate(module: nn.Module) -> nn.Module:
    """A deep copy that shares no parameter or buffer.

    Tensors with a gradient history are copied as plain ones; attributes of parameters, and hooks of
    graphs, stay; what cannot be copied (a lock, a file) is shared, and said.
    """
    with torch.inference_mode(False):
        memo = _history(module)
        try:
            copied = copy.deepcopy(module, dict(memo))
        except Exception:  # noqa: BLE001 - an attribute's own __deepcopy__ may raise anything
            memo.update(_uncopyable(module))
            copied = copy.deepcopy(module, dict(memo))
        _complete(module, copied)
    return copied


def _history(module: nn.Module) -> dict[int, Any]:
    """Copies of the tensors that are computed from others, for deepcopy's memo."""
    memo: dict[int, Any] = {}
    for m in module.modules():
        for name, value in vars(m).items():
            if name == "_flat_weights" and not all(w is None or w.is_leaf for w in value):
                memo[id(value)] = []  # a recurrent module's list, made anew below
            elif name not in ("_modules", "_parameters", "_buffers"):
                for t in tensors_in(value, 4):
                    if not t.is_leaf:
                        memo[id(t)] = t.detach().clone()
        for buffer in m._buffers.values():
            if buffer is not None and not buffer.is_leaf:
                memo[id(buffer)] = buffer.detach().clone()
    return memo


def _uncopyable(module: nn.Module) -> dict[int, Any]:
    """Attributes that deepcopy fails on, as they are."""
    memo: dict[int, Any] = {}
    for path, m in module.named_modules():
        for name, value in vars(m).items():
            if name.startswith("_") or isinstance(value, torch.Tensor | nn.Module):
                continue
            try:
                copy.deepcopy(value, _others(module))
            except Exception:  # noqa: BLE001 - see above
                memo[id(value)] = value
                where = f"{path}.{name}" if path else name
                log.warning("%s (%s) cannot be copied: it is shared", where, type(value).__name__)
    return memo


def _others(module: nn.Module) -> dict[int, Any]:
    """A memo in which modules and parameters stand for themselves."""
    held: list[Any] = [*module.modules(), *module.parameters(), *module.buffers()]
    return {id(one): one for one in held}


def _complete(module: nn.Module, copied: nn.Module) -> None:
    """What deepcopy has left out."""
    for (_, old), (_, new) in _pairs(module, copied):
        if vars(old) and isinstance(new, nn.Parameter):
            vars(new).update({k: v for k, v in vars(old).items() if k not in vars(new)})
    for old_module, m in zip(module.modules(), copied.modules(), strict=True):
        if isinstance(m, nn.RNNBase):
            m.flatten_parameters()  # cuDNN warns of weights that lie apart, as a copy's do
        if isinstance(m, fx.GraphModule):
            for name in _HOOKS:
                vars(m)[name] = _kept(vars(old_module)[name])
            m._non_persistent_buffers_set = set(old_module._non_persistent_buffers_set)


def _kept(hooks: Any) -> Any:
    """Hooks without those by which torch.export checks inputs of its own modules."""
    made = hooks.copy()
    for key, hook in hooks.items():
        if str(getattr(hook, "__module__", "")).startswith(("torch.export", "torch._export")):
            del made[key]
    return made


def _pairs(module: nn.Module, copied: nn.Module) -> Iterator[tuple[Any, Any]]:
    return zip(module.named_parameters(), copied.named_parameters(), strict=True)
