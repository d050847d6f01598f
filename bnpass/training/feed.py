"""Training batches as tensors on the device: a pure function of seed and step, read ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from bnpass.data.dataset import Data, epoch_order
from bnpass.nn import distributed
from bnpass.training.config import TrainConfig, steps_per_epoch

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]


class Feed:
    """The training data of this process.

    Args:
        data: labelled samples; converted once and held on the device when they are small.
        config: batch size, seed and memory format.
        device: where the tensors go.
        limit: bytes of converted samples to hold.
    """

    def __init__(
        self, data: Data, config: TrainConfig, device: torch.device, limit: int = 1 << 30
    ) -> None:
        self.config, self.device = config, device
        self.batch = min(config.batch_size, len(data))
        self.per_epoch = steps_per_epoch(len(data), self.batch)
        self.data = data.cached(limit)
        self._epoch, self._order = -1, np.empty(0, np.int64)
        self._held: Pair | None = None
        if self.data.held:
            self._held = self._tensors(np.arange(len(data)))

    def index(self, step: int) -> npt.NDArray[np.int64]:
        """The samples of a step, over all processes; an epoch's remainder waits for the next."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = epoch_order(len(self.data), self.config.seed, epoch)
        return self._order[position * self.batch : (position + 1) * self.batch]

    def take(self, step: int) -> list[Pair]:
        """This process's micro-batches of a step: ``(samples, labels)``."""
        mine = np.array_split(self.index(step), distributed.world())[distributed.rank()]
        parts = np.array_split(mine, self.config.accumulate)
        return [self._pair(part) for part in parts if len(part)]

    def steps(self, start: int, stop: int) -> Iterator[tuple[int, list[Pair]]]:
        """Walk over the steps; the next batch is read while the current one is trained on."""
        if self._held is not None:
            yield from ((step, self.take(step)) for step in range(start, stop))
            return
        with ThreadPoolExecutor(1, thread_name_prefix="bnpass-feed") as reader:
            ahead = reader.submit(self.take, start)
            for step in range(start, stop):
                current = ahead.result()
                if step + 1 < stop:
                    ahead = reader.submit(self.take, step + 1)
                yield step, current

    def _pair(self, index: npt.NDArray[np.int64]) -> Pair:
        if self._held is None:
            return self._tensors(index)
        chosen = torch.from_numpy(index).to(self.device)
        return self._held[0][chosen], self._held[1][chosen]

    def _tensors(self, index: npt.NDArray[np.int64]) -> Pair:
        return to_tensors(self.data, index, self.device, channels_last=self.config.channels_last)


def to_tensors(
    data: Data, index: npt.NDArray[np.int64], device: torch.device, *, channels_last: bool = False
) -> Pair:
    """Samples and labels of a set as tensors on a device."""
    x, y = data.take(index)
    samples = torch.from_numpy(np.ascontiguousarray(x))
    if data.converter.dtype == "bfloat16":
        samples = samples.bfloat16()
    samples = samples.to(device, non_blocking=True)
    if channels_last and samples.ndim == 4:
        samples = samples.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(len(index)) if y is None else torch.from_numpy(np.ascontiguousarray(y))
    return samples, labels.to(device, non_blocking=True)


def augment(x: Tensor, generator: np.random.Generator, *, crop: int, flip: bool) -> Tensor:
    """Shift images ``(n, c, h, w)`` by up to ``crop`` pixels and mirror half of them, at random."""
    if x.ndim != 4 or not (crop or flip):
        return x
    if flip:
        mirrored = torch.from_numpy(generator.random(len(x)) < 0.5).to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    if not crop:
        return x
    height, width = x.shape[-2:]
    padded = torch.nn.functional.pad(x, (crop, crop, crop, crop))
    offsets = generator.integers(0, 2 * crop + 1, (2, len(x)))
    down, right = (torch.from_numpy(o).to(x.device)[:, None] for o in offsets)
    rows = (down + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (right + torch.arange(width, device=x.device))[:, None, None, :]
    sample = torch.arange(len(x), device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[sample, channel, rows, columns]
