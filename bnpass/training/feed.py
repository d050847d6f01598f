"""Training batches as tensors on the device: a pure function of seed and step, read ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bnpass.data import Data, NamedData, Stream
from bnpass.data.dataset import epoch_order
from bnpass.data.protocol import Arguments, bind, labelled
from bnpass.data.trees import count, mapped
from bnpass.errors import InputError, UsageError
from bnpass.nn import distributed
from bnpass.nn.calls import Feeder, as_tensor, takes_of
from bnpass.nn.masks import counting
from bnpass.statistics.source import cut
from bnpass.training.config import TrainConfig, steps_per_epoch

Tensor = torch.Tensor
Inputs = Tensor | Arguments
Pair = tuple[Inputs, Any]
"""Inputs (a tensor for a single one) and targets."""

Samples = Data | NamedData | Stream
"""What can be trained on."""

_CONVERTED = {"cpu": 1 << 27, "cuda": 1 << 30}
"""Bytes of converted samples that are held; larger sets are converted batch by batch."""


class Reader:
    """Batches of labelled samples as tensors that a network takes.

    Args:
        data: samples, or batches.
        device: where the tensors go.
        gm: the network; says what its inputs are called and of which type they are.
        channels_last: lay images out so.
    """

    def __init__(
        self, data: Samples, device: torch.device, gm: nn.Module | None = None, *,
        channels_last: bool = False,
    ) -> None:
        self.data, self.device, self.channels_last = data, device, channels_last
        self.takes = None if gm is None else takes_of(gm)
        self.feeder = Feeder(gm if gm is not None else nn.Module(), device)

    def __len__(self) -> int:
        return 0 if isinstance(self.data, Stream) else len(self.data)

    def pair(self, index: npt.NDArray[np.int64]) -> Pair:
        """Some samples of a set."""
        assert not isinstance(self.data, Stream)
        inputs: Any
        inputs, targets = self.data.take(index)
        if isinstance(self.data, Data) and self.data.converter.dtype == "bfloat16":
            inputs = as_tensor(inputs).bfloat16()
        targets = np.zeros(len(index), np.float32) if targets is None else targets
        if isinstance(inputs, dict):
            assert self.takes is not None
            return self.placed(bind(inputs, self.takes), targets)
        return self.placed(Arguments((inputs,)), targets)

    def placed(self, call: Arguments, targets: Any) -> Pair:
        """A batch as tensors on the device."""
        call = self.feeder(call)
        if self.channels_last:
            call = replace(call, args=mapped(call.args, _channels_last),
                           kwargs=mapped(call.kwargs, _channels_last))
        single = len(call.args) == 1 and not call.kwargs and isinstance(call.args[0], Tensor)
        single = single and call.mask is None
        return call.args[0] if single else call, mapped(targets, self._target)

    def _target(self, value: Any) -> Tensor:
        found = as_tensor(value)
        if not found.is_floating_point() and found.dtype != torch.int64:
            found = found.long()  # what torch's losses take for classes
        return found.to(self.device, non_blocking=True)

    def example(self, size: int = 2) -> Pair:
        """A few samples, to try the network with."""
        if not isinstance(self.data, Stream):
            return self.pair(np.arange(min(size, len(self.data))))
        assert self.takes is not None
        call, targets = labelled(self.data.peek(), self.takes)
        samples = count((call.args, call.kwargs))
        short = call if not samples else cut(call, slice(0, size))
        return self.placed(short, targets)

    def batches(self, size: int) -> Iterator[Pair]:
        """Walk over everything once, in order; each process gets every so many-th batch."""
        mine, world = distributed.rank(), distributed.world()
        if isinstance(self.data, Stream):
            assert self.takes is not None
            for item in islice(self.data, mine, None, world):
                yield self.placed(*labelled(item, self.takes))
            return
        for start in range(0, len(self.data), size)[mine::world]:
            yield self.pair(np.arange(start, min(start + size, len(self.data))))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def samples_of(pair: Pair) -> int:
    """Samples in a batch; 1 where its arrays do not say."""
    inputs = pair[0]
    if isinstance(inputs, Tensor):
        return len(inputs)
    return count((inputs.args, inputs.kwargs)) or count(pair[1]) or 1


def run(model: nn.Module, inputs: Inputs) -> Any:
    """What a network gives for inputs."""
    if not isinstance(inputs, Arguments):
        return model(inputs)
    with counting(inputs.mask):
        return model(*inputs.args, **inputs.kwargs)


class Feed:
    """The training data of this process.

    Args:
        data: labelled samples, converted once and held on the device when they are small; or
            batches of people's own.
        config: batch size, seed and memory format.
        device: where the tensors go.
        limit: bytes of converted samples to hold; by default by the device.
        gm: the network.
    """

    def __init__(
        self, data: Samples, config: TrainConfig, device: torch.device, limit: int | None = None,
        gm: nn.Module | None = None,
    ) -> None:
        self.config, self.device = config, device
        self._held: Pair | None = None
        self._epoch, self._order = -1, np.empty(0, np.int64)
        if isinstance(data, Stream):
            self.batch, self.per_epoch = 0, data.length or 0
            self.data: Samples = data
        else:
            self.batch = min(config.batch_size, len(data))
            self.per_epoch = steps_per_epoch(len(data), self.batch)
            self.data = data.cached(_CONVERTED.get(device.type, 1 << 27) if limit is None
                                    else limit)
        self.reader = Reader(self.data, device, gm, channels_last=config.channels_last)
        if isinstance(self.data, Data) and self.data.held:
            self._held = self.reader.pair(np.arange(len(self.data)))

    def total(self) -> int:
        """Steps of the run.

        Raises:
            UsageError: it is given in passes over batches that cannot be counted.
        """
        if not isinstance(self.data, Stream):
            return self.config.total_steps(len(self.data))
        if not self.config.steps and not self.per_epoch:
            raise UsageError(f"{self.data.where}: batches that cannot be counted",
                             "say how long to train: --steps (steps=)")
        return self.config.steps or max(1, round(self.config.epochs * self.per_epoch))

    def index(self, step: int) -> npt.NDArray[np.int64]:
        """The samples of a step, over all processes; an epoch's remainder waits for the next."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = epoch_order(len(self.reader), self.config.seed, epoch)
        return self._order[position * self.batch : (position + 1) * self.batch]

    def take(self, step: int) -> list[Pair]:
        """This process's micro-batches of a step: ``(inputs, targets)``."""
        mine = np.array_split(self.index(step), distributed.world())[distributed.rank()]
        parts = np.array_split(mine, self.config.accumulate)
        return [self._pair(part) for part in parts if len(part)]

    def steps(self, start: int, stop: int) -> Iterator[tuple[int, list[Pair]]]:
        """Walk over the steps; the next batch is read while the current one is trained on."""
        if isinstance(self.data, Stream):
            yield from self._streamed(start, stop)
            return
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

    def _streamed(self, start: int, stop: int) -> Iterator[tuple[int, list[Pair]]]:
        """Steps from batches of people's own; a resumed run walks past those that it has done."""
        assert isinstance(self.data, Stream)
        step = 0
        for epoch, batches in enumerate(self.data.passes()):
            # A loader that shuffles draws from torch's generator: each pass repeats to the bit.
            torch.manual_seed(hash((self.config.seed, epoch, 0xE90C)) & 0x7FFF_FFFF_FFFF_FFFF)
            before = step
            for item in batches:
                if step >= stop:
                    return
                if step >= start:
                    yield step, self._parts(item)
                step += 1
            if step == before:
                raise InputError(f"{self.data.where}: gives no batch", "it must give at least one")

    def _parts(self, item: Any) -> list[Pair]:
        """This process's micro-batches of a batch."""
        assert self.reader.takes is not None
        call, targets = labelled(item, self.reader.takes)
        samples = count((call.args, call.kwargs, targets))
        wanted = distributed.world() * self.config.accumulate
        if not samples or wanted == 1:
            pair = self.reader.placed(call, targets)
            self.batch = samples_of(pair) * distributed.world()
            return [pair]
        self.batch = samples
        mine = np.array_split(np.arange(samples), distributed.world())[distributed.rank()]
        return [self.reader.placed(cut(call, part), cut(Arguments((targets,)), part).args[0])
                for part in np.array_split(mine, self.config.accumulate) if len(part)]

    def _pair(self, index: npt.NDArray[np.int64]) -> Pair:
        if self._held is None:
            return self.reader.pair(index)
        chosen = torch.from_numpy(index).to(self.device)
        inputs, targets = self._held
        assert isinstance(inputs, Tensor)
        return inputs[chosen], targets[chosen]


def augment(x: Any, generator: np.random.Generator, *, crop: int, flip: bool) -> Any:
    """Shift images ``(n, c, h, w)`` by up to ``crop`` pixels and mirror half of them, at random."""
    if not isinstance(x, Tensor) or x.ndim != 4 or not (crop or flip):
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
