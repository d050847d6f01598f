"""torch's SGD with less to do between two kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class SGD(torch.optim.SGD):
    """The same steps, to the last bit, and the same state as :class:`torch.optim.SGD`.

    What torch gathers anew in every step (parameters, momentum, checks) takes longer than the
    kernel itself where a network is small. Here it is gathered once; a step that needs more (the
    first one, one of fp16 training, one in which a parameter has no gradient, parameters of
    several types or devices in one group) is torch's.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        self._buffers: dict[int, list[torch.Tensor]] = {}
        super().__init__(params, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the parameters against their gradients."""
        gathered = None if closure is not None or self._scaled() else self._gathered()
        if gathered is None:
            self._buffers.clear()
            return super().step(closure)  # type: ignore[no-any-return]
        for group, grads, buffers in gathered:
            torch._fused_sgd_(
                group["params"], grads, buffers, weight_decay=group["weight_decay"],
                momentum=group["momentum"], lr=group["lr"], dampening=group["dampening"],
                nesterov=group["nesterov"], maximize=group["maximize"], is_first_step=False,
            )  # fmt: skip
        return None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        if not set_to_none:
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def load_state_dict(self, state_dict: Any) -> None:
        """Take over a state; its momentum is another tensor."""
        self._buffers.clear()
        super().load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train more parameters."""
        self._buffers.clear()
        super().add_param_group(param_group)

    def _scaled(self) -> bool:
        """Whether a GradScaler has left something to do."""
        return getattr(self, "grad_scale", None) is not None or (
            getattr(self, "found_inf", None) is not None
        )

    def _gathered(self) -> list[tuple[dict[str, Any], list[Any], list[torch.Tensor]]] | None:
        """Group, gradients and momentum; None if one is not there or of another kind."""
        found = []
        for index, group in enumerate(self.param_groups):
            grads = [p.grad for p in group["params"]]
            buffers = self._momentum(index, group)
            if buffers is None or not group["fused"] or any(g is None for g in grads):
                return None
            found.append((group, grads, buffers))
        return found

    def _momentum(self, index: int, group: dict[str, Any]) -> list[torch.Tensor] | None:
        buffers = self._buffers.get(index)
        if buffers is None:
            params = group["params"]
            held = [self.state[p].get("momentum_buffer") for p in params if group["momentum"]]
            kinds = {(p.device, p.dtype) for p in params}  # torch's kernel takes one at a time
            if len(kinds) != 1 or any(b is None for b in held):
                return None
            buffers = self._buffers[index] = held
        return buffers
