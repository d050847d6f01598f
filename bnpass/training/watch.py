"""The distribution of a pre-activation over training: the paper's Figure 1 b and c."""

from __future__ import annotations

import torch
from torch import fx, nn

from bnpass.training.evaluate import in_eval_mode
from bnpass.training.norms import Tensor, batch_norms, by_batch, normalising_with
from bnpass.training.outputs import value_module

POINTS = (0.15, 0.50, 0.85)
_MOST = 1 << 20  # elements; more do not change a percentile that anyone could see


class Watch:
    """Takes the {15, 50, 85}th percentiles of chosen values on the same samples each time.

    BN normalises by the batch, as it does while training, and keeps its statistics.

    Args:
        gm: the network.
        names: fx nodes or module paths (see :func:`bnpass.training.outputs.value_module`).
        samples: inputs ``(n, ...)`` on the network's device.
        unit: look at one unit or feature map (index along axis 1) instead of all.
    """

    def __init__(
        self, gm: fx.GraphModule, names: tuple[str, ...], samples: Tensor, unit: int | None = None
    ) -> None:
        self.views = {name: value_module(gm, name) for name in names}
        self.samples, self.unit = samples, unit

    def take(self) -> list[tuple[str, float, float, float]]:
        """``(value, p15, p50, p85)`` of each watched value now."""
        return [(name, *self._percentiles(view)) for name, view in self.views.items()]

    def _percentiles(self, view: nn.Module) -> tuple[float, float, float]:
        norms = list(batch_norms(view).values())
        with torch.no_grad(), in_eval_mode(view), normalising_with(norms, by_batch):
            value = view(self.samples)
        values = (value if self.unit is None else value[:, self.unit]).float().reshape(-1)
        values = values[:: 1 + values.numel() // _MOST]
        points = torch.tensor(POINTS, device=values.device)
        low, middle, high = torch.quantile(values, points).tolist()
        return low, middle, high
