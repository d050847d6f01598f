"""The processes that torchrun started: who am I, and what do we add up."""

from __future__ import annotations

import atexit
import os
from typing import Any

import torch
from torch import distributed as dist


def join(device: str = "auto") -> None:
    """Join the process group that ``torchrun`` describes in the environment, if it does.

    nccl on GPUs, gloo on CPUs; nothing happens outside of torchrun, or when a group is there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    atexit.register(leave)


def leave() -> None:
    """Leave the process group: from here on each process is alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """Number of processes that train together; 1 outside of torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, ``0 .. world() - 1``; files are written by 0 alone."""
    return dist.get_rank() if world() > 1 else 0


def total(*numbers: float) -> tuple[float, ...]:
    """Each number summed over the processes, in float64."""
    if world() == 1:
        return numbers
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    summed = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return tuple(summed.tolist())


def gather(value: Any) -> list[Any]:
    """The values of all processes in the order of their ranks (tensors must be on the CPU)."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for the other processes."""
    if world() > 1:
        dist.barrier()
