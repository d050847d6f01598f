"""Training on the device: throughput of networks side by side, and the run that is deployed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_job.network import Images
from benchmarks.gpu_job.result import Result, interleaved

AGAINST = {
    "BN by hand": "no BN",
    "BN inserted": "BN by hand",
    "BN inserted, exported, imported": "BN by hand",
}
MODES = ("eager", "channels_last", "compile")


def wait_for(device: torch.device) -> Callable[[], object]:
    """Return what waits until the device has done its work."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


class Step:
    """One step of SGD with momentum under autocast to bf16, as a training script would write it.

    Args:
        module: the network; trained in place.
        lr: learning rate.
    """

    def __init__(self, module: nn.Module, lr: float = 0.05) -> None:
        self.module = module.train()
        self.optimizer = torch.optim.SGD(module.parameters(), lr, momentum=0.9)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of the batch before the step."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(self.module(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def fit(module: nn.Module, images: Images, batch: int, steps: int) -> tuple[float, float]:
    """Train and return the mean loss of the first and of the last three steps."""
    step = Step(module)
    losses = torch.stack([step(x, y) for x, y in images.batches(batch, steps)]).cpu()
    return float(losses[:3].mean()), float(losses[-3:].mean())


@torch.no_grad()
def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of images that a network in eval mode gets right, in float32."""
    return float((module.eval()(x).argmax(1) == y).float().mean())


def throughput(
    result: Result,
    modules: Mapping[str, nn.Module],
    images: Images,
    batch: int,
    *,
    mode: str,
    rounds: int,
    seconds: float,
) -> None:
    """Add the training throughput of networks side by side.

    Args:
        result: gets the rows.
        modules: networks by label; trained further, and converted to the mode.
        images: what they see.
        batch: images a step.
        mode: ``"eager"``, ``"channels_last"``, or ``"compile"`` (with channels_last).
        rounds: steps of each.
        seconds: time limit.
    """
    torch.backends.cudnn.benchmark = True  # as training scripts do where shapes are fixed
    x, y = images.batch(batch)
    if mode != "eager":
        x = x.contiguous(memory_format=torch.channels_last)
    calls = {}
    for label, module in modules.items():
        if mode != "eager":
            module.to(memory_format=torch.channels_last)
        step = Step(torch.compile(module) if mode == "compile" else module)
        calls[label] = lambda step=step: step(x, y)
    times = interleaved(calls, wait_for(x.device), rounds=rounds, seconds=seconds)
    result.timed(f"train bf16, batch {batch}, {mode}", times, batch, "images/s", AGAINST)


def inference(
    result: Result, modules: Mapping[str, nn.Module], x: Tensor, *, rounds: int, seconds: float
) -> None:
    """Add the throughput of eval-mode networks in torch, bf16 and channels_last."""
    x = x.contiguous(memory_format=torch.channels_last)
    calls = {}
    for label, module in modules.items():
        module.eval().to(memory_format=torch.channels_last)
        calls[label] = lambda module=module: _forward(module, x)
    times = interleaved(calls, wait_for(x.device), rounds=rounds, seconds=seconds)
    part = f"torch inference bf16, batch {len(x)}"
    result.timed(part, times, len(x), "images/s", {"folded": "with BN"})


@torch.no_grad()
def _forward(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return module(x)  # type: ignore[no-any-return]


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 for a while: comparisons are of float32."""
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = False
    try:
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def library_loop(
    result: Result, module: Any, images: Images, batch: int, steps: int, device: torch.device
) -> None:
    """Add what :func:`bnpass.training.train` reaches, its data coming from the host."""
    import time

    from bnpass.data import from_arrays
    from bnpass.training import TrainConfig, train

    x, y = images.batch(2 * batch)
    data = from_arrays(x.cpu().numpy(), y.cpu().numpy())
    options: dict[str, Any] = {
        "device": device.type, "precision": "bf16", "channels_last": device.type == "cuda",
        "batch_size": batch, "lr": 0.01, "deterministic": False,
    }  # fmt: skip
    train(module, data, None, TrainConfig(steps=2, **options))
    begin = time.perf_counter()
    history = train(module, data, None, TrainConfig(steps=steps, **options))
    seconds = time.perf_counter() - begin
    if history.stopped != "done":
        raise RuntimeError(f"the training ended: {history.stopped}")
    label = "bnpass.training.train, data from the host"
    result.add(f"train bf16, batch {batch}", label, f"{steps * batch / seconds:,.0f} images/s")
