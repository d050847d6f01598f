"""The distribution of a pre-activation over training: the paper's Figure 1 b and c."""

from __future__ import annotations

import re

import torch
from torch import fx, nn

from bnpass.errors import UsageError
from bnpass.nn.norms import Tensor, batch_norms, by_batch, normalising_with
from bnpass.training.evaluate import in_eval_mode
from bnpass.training.feed import Inputs, run
from bnpass.training.outputs import value_module

POINTS = (0.15, 0.50, 0.85)
_MOST = 1 << 20  # elements; more do not change a percentile that anyone could see


class Watch:
    """Takes the {15, 50, 85}th percentiles of chosen values on the same samples each time.

    BN normalises by the batch, as it does while training, and keeps its statistics.

    Args:
        gm: the network.
        names: fx nodes or module paths (see :func:`bnpass.training.outputs.value_module`);
            ``"NAME[3]"`` looks at one unit or feature map (index along axis 1) instead of all.
        samples: inputs on the network's device.
        unit: the same for every name without an index.

    Raises:
        UsageError: there is no such value, or it has no such unit.
    """

    def __init__(
        self, gm: nn.Module, names: tuple[str, ...], samples: Inputs, unit: int | None = None
    ) -> None:
        split = {name: _split(name, unit) for name in names}
        if not isinstance(gm, fx.GraphModule):
            raise UsageError(f"values to watch in a {type(gm).__name__}",
                             "values have names in a traced network: torch.fx.symbolic_trace")
        # One run of the network serves every unit of a value.
        self.views = {value: value_module(gm, value) for value, _ in split.values()}
        self.samples, self.split = samples, split
        self._check_units()

    def _check_units(self) -> None:
        values = self._values()
        for name, (value, unit) in self.split.items():
            shape = list(values[value].shape)
            if unit is not None and (len(shape) < 2 or unit >= shape[1]):
                raise UsageError(f"{name}: {value} has the shape {shape}",
                                 "the index is that of a unit along axis 1, from 0 on")

    def take(self) -> list[tuple[str, float, float, float]]:
        """``(name, p15, p50, p85)`` of each watched value now."""
        values = self._values()
        return [(name, *_percentiles(values[value] if unit is None else values[value][:, unit]))
                for name, (value, unit) in self.split.items()]

    def _values(self) -> dict[str, Tensor]:
        return {name: self._run(view) for name, view in self.views.items()}

    def _run(self, view: nn.Module) -> Tensor:
        norms = list(batch_norms(view).values())
        with torch.no_grad(), in_eval_mode(view), normalising_with(norms, by_batch):
            value: Tensor = run(view, self.samples)
        return value


def _split(name: str, unit: int | None) -> tuple[str, int | None]:
    found = re.fullmatch(r"(.+)\[(\d+)\]", name)
    return (found[1], int(found[2])) if found else (name, unit)


def _percentiles(value: Tensor) -> tuple[float, float, float]:
    values = value.float().reshape(-1)
    values = values[:: 1 + values.numel() // _MOST]
    points = torch.tensor(POINTS, device=values.device)
    low, middle, high = torch.quantile(values, points).tolist()
    return low, middle, high
