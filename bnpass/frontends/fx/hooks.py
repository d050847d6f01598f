"""Forward hooks on modules: which of them change what the module computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

OBSERVED = "bnpass_hooks_observe"
"""Node meta: the module's hooks were seen to change nothing."""

TOUCHED = "bnpass_touched"
"""Node meta: hooks of the called module read or write its weights."""

_WEIGHTS = (SpectralNorm, WeightNorm, BasePruningMethod)


def computes_weights(hook: object) -> bool:
    """Whether a pre-hook only makes a weight of others, in a way that bnpass knows."""
    return isinstance(hook, _WEIGHTS)


def has_hooks(module: nn.Module) -> bool:
    """Whether a forward (pre-)hook stands on a module, weight_norm's own not counted."""
    before = [h for h in module._forward_pre_hooks.values() if not isinstance(h, _WEIGHTS)]
    return bool(before or module._forward_hooks)


def is_hooked(module: nn.Module, node: fx.Node) -> bool:
    """Whether hooks may change what a module computes: then nobody knows what it does."""
    if TOUCHED in node.meta:  # a recording has the hooks' own work as nodes of their own
        return bool(node.meta[TOUCHED])
    return has_hooks(module) and not node.meta.get(OBSERVED)


@contextmanager
def watched(module: nn.Module) -> Iterator[list[bool]]:
    """Note for a while whether a hook of the module returns something, and so changes values."""
    alters: list[bool] = []
    tables: tuple[Any, ...] = (module._forward_pre_hooks, module._forward_hooks)
    held = [dict(table) for table in tables]

    def noting(hook: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = hook(*args, **kwargs)
            if result is not None and not isinstance(hook, _WEIGHTS):
                alters.append(True)
            return result

        return call

    try:
        for table in tables:
            for key, hook in list(table.items()):
                table[key] = noting(hook)
        yield alters
    finally:
        for table, before in zip(tables, held, strict=True):
            table.update(before)


def bake(gm: nn.Module) -> None:
    """Make parametrized weights (weight_norm, spectral_norm ...) plain ones, of today's value."""
    for module in list(gm.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                unparametrize(module, name)
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, _WEIGHTS):
                hook.remove(module)
                del module._forward_pre_hooks[key]


def unparametrize(module: nn.Module, name: str) -> None:
    """Make one parametrized tensor plain.

    torch removes the property from the module's class, which deep copies share: the copy gets a
    class of its own first, so that the module it was copied from stays whole.
    """
    kind = type(module)
    body = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, body)
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
