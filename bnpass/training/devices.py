"""Where to compute, in which precision, and how to make it repeatable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from bnpass.errors import MissingDependencyError, UsageError
from bnpass.nn import distributed


def pick_device(name: str) -> torch.device:
    """The device of a name: ``"auto"`` (a GPU when there is one), ``"cpu"``, ``"cuda[:N]"``.

    Under torchrun each process gets its own GPU.

    Raises:
        MissingDependencyError: a GPU is asked for and there is none.
        UsageError: any other name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda" and not (name.startswith("cuda:") and name[5:].isdigit()):
        raise UsageError(f"unknown device {name!r}", "choose auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(name[5:] or 0) if ":" in name else int(os.environ.get("LOCAL_RANK", "0"))
    if number >= count:
        raise MissingDependencyError(f"{name}: there are {count} GPUs that PyTorch can use",
                                     "choose --device cpu, or install a PyTorch with CUDA")
    return torch.device("cuda", number)


@contextmanager
def repeatable(*, deterministic: bool = True) -> Iterator[None]:
    """Deterministic algorithms for a while, and the callers' random state back afterwards.

    With ``deterministic=False`` a GPU takes the fastest algorithms that it finds instead.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    debugging: Any = torch.utils.deterministic
    before = (torch.are_deterministic_algorithms_enabled(),
              torch.is_deterministic_algorithms_warn_only_enabled(),
              torch.backends.cudnn.benchmark,
              debugging.fill_uninitialized_memory)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
    # A debugging aid that writes every new tensor twice; nothing here reads unwritten memory.
    debugging.fill_uninitialized_memory = False
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[2]
        debugging.fill_uninitialized_memory = before[3]


def seed_step(seed: int, step: int) -> None:
    """Seed torch's generators (Dropout) for one step.

    All randomness of a step follows from the seed, the step and the process, so that a resumed run
    needs no stored state.
    """
    number = hash((seed, step, distributed.rank())) & 0x7FFF_FFFF_FFFF_FFFF
    # torch.manual_seed would note a stack trace for a GPU that nobody has used yet, at each step.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def step_generator(seed: int, step: int) -> np.random.Generator:
    """The generator for the augmentation of one step, as :func:`seed_step` for Dropout."""
    return np.random.default_rng((seed, step, distributed.rank()))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Run what is inside in lower precision where that is safe; nothing for ``"fp32"``.

    Raises:
        UsageError: fp16 without a GPU.
    """
    if precision == "fp32":
        return nullcontext()
    if precision == "fp16" and device.type != "cuda":
        raise UsageError("fp16 needs a GPU", "choose bf16 or fp32 on a CPU")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype)
