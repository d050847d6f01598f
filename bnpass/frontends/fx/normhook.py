"""A BatchNorm on what a module returns, or on what it takes: a child module, called by a hook.

The module stays what it is: its class, its paths, its forward and older hooks. Hooks added later
see normalised values; calling ``module.forward`` itself passes the BatchNorm by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnpass.frontends.fx.layout import normalised

Tensor = torch.Tensor


@dataclass(frozen=True)
class NormHook:
    """Calls a child of the module on a value; it pickles by name.

    Attributes:
        child: name of the BatchNorm among the module's children.
        last: the channels are the last axis of more than two.
    """

    child: str
    last: bool

    def normalised(self, module: nn.Module, value: Tensor) -> Tensor:
        """The BatchNorm of a value, laid out in memory as the value is.

        Args:
            module: that holds the BatchNorm.
            value: (N, C, ...), or (N, ..., C) where the channels come last.
        """
        norm = module._modules[self.child]
        assert norm is not None
        return normalised(norm, value, value.dim() - 1 if self.last else 1)


@dataclass(frozen=True)
class OutputNorm(NormHook):
    """A forward hook: normalises what the module returns."""

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """See :meth:`torch.nn.Module.register_forward_hook`."""
        del args
        return self.normalised(module, output)


@dataclass(frozen=True)
class InputNorm(NormHook):
    """A forward pre-hook: normalises one argument of the module.

    Attributes:
        key: its position, or its keyword.
    """

    key: int | str = 0

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """See :meth:`torch.nn.Module.register_forward_pre_hook`, ``with_kwargs=True``."""
        if isinstance(self.key, str):
            return args, {**kwargs, self.key: self.normalised(module, kwargs[self.key])}
        made = list(args)
        made[self.key] = self.normalised(module, made[self.key])
        return tuple(made), kwargs


def is_norm_hook(hook: object) -> bool:
    """Whether a hook calls a BatchNorm that bnpass has inserted."""
    return isinstance(hook, NormHook)


def attach(module: nn.Module, norm: nn.Module, *, key: int | str | None, last: bool) -> str:
    """Let a module's result (or the argument ``key``) be normalised; returns the child's name."""
    base = "output_bn" if key is None else "input_bn"
    name, n = base, 1
    while hasattr(module, name):
        n += 1
        name = f"{base}_{n}"
    module.add_module(name, norm)
    if key is None:
        module.register_forward_hook(OutputNorm(name, last))
    else:
        module.register_forward_pre_hook(InputNorm(name, last, key), with_kwargs=True)
    return name


def detach(module: nn.Module, child: str) -> bool:
    """Take a BatchNorm and its hook away again; False where it is not held by a hook."""
    tables: tuple[Any, ...] = (module._forward_hooks, module._forward_pre_hooks)
    found = [(t, k) for t in tables for k, h in t.items() if is_norm_hook(h) and h.child == child]
    for table, key in found:
        del table[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    if found:
        delattr(module, child)
    return bool(found)


def hooked_norms(root: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(module, name of the child) of every BatchNorm that a hook of the root's modules calls."""
    for module in root.modules():
        hooks: list[Any] = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        for hook in hooks:
            if is_norm_hook(hook):
                yield module, hook.child
