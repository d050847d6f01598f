"""Forward hooks on modules: which of them change what the module computes."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

OBSERVED = "bnpass_hooks_observe"
"""Node meta: the module's hooks were seen to change nothing."""

_WEIGHTS = (SpectralNorm, WeightNorm)


def has_hooks(module: nn.Module) -> bool:
    """Whether a forward (pre-)hook stands on a module, weight_norm's own not counted."""
    before = [h for h in module._forward_pre_hooks.values() if not isinstance(h, _WEIGHTS)]
    return bool(before or module._forward_hooks)


def is_hooked(module: nn.Module, node: fx.Node) -> bool:
    """Whether hooks may change what a module computes: then nobody knows what it does."""
    return has_hooks(module) and not node.meta.get(OBSERVED)


def bake(gm: nn.Module) -> None:
    """Make parametrized weights (weight_norm, spectral_norm ...) plain ones, of today's value."""
    for module in list(gm.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, _WEIGHTS):
                hook.remove(module)
                del module._forward_pre_hooks[key]
