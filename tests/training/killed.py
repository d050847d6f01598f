"""A training run that says how far it is and waits to be killed: run by test_checkpoints.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from bnpass.training import TrainConfig, train
from tests.training.nets import blobs, mlp

SETTINGS = TrainConfig(lr=0.2, batch_size=40, steps=60, eval_every=7, log_every=1,
                       checkpoint_every=5, optimizer="adamw", device="cpu")


def main(out: str, stop_at: int) -> None:
    """Train from the checkpoint in ``out``, if any; say each step; hang behind one of them."""
    torch.set_num_threads(1)

    def say(progress) -> None:
        print(progress.step, flush=True)
        if progress.step == stop_at:
            sys.stdin.read()  # until the parent kills this process

    train(mlp(dropout=0.3), blobs(), blobs(60, seed=1), SETTINGS, out=Path(out), resume=True,
          progress=say)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
