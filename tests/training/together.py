"""What each process of test_distributed.py does; rank 0 writes what it found."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from bnpass.nn import distributed
from bnpass.training import TrainConfig, calibrate, train
from tests.training.nets import blobs, convnet, images, mlp

ONE_STEP = TrainConfig(lr=1.0, momentum=0.0, schedule="constant", steps=1, batch_size=44,
                       device="cpu")
STEPS = replace(ONE_STEP, lr=0.1, momentum=0.9, steps=12, eval_every=4)


def work(out: Path | None = None) -> dict[str, object]:
    """Gradients, a short training and population statistics, under torchrun or alone."""
    found: dict[str, object] = {}
    for name, make, data in (("mlp", mlp, blobs()), ("conv", convnet, images())):
        gm = make()
        before = {k: v.clone() for k, v in gm.named_parameters()}
        train(gm, data, None, ONE_STEP)
        # One step of plain SGD with rate 1 moves the weights by minus the gradient.
        found[f"{name} gradient"] = {k: before[k] - v.detach() for k, v in gm.named_parameters()}
        found[f"{name} running"] = dict(gm.named_buffers())
        for method in ("pooled", "paper"):
            state = calibrate(make(), data, batch_size=24, method=method).state_dict()
            found[f"{name} {method}"] = state
    gm = mlp()
    history = train(gm, blobs(), blobs(101, seed=1), STEPS, out=out)
    found["trained"] = gm.state_dict()
    found["losses"] = torch.tensor([row.loss for row in history.rows])
    found["accuracy"] = torch.tensor([row.validation_accuracy for row in history.validations])
    mine = torch.cat([v.reshape(-1).double() for v in gm.state_dict().values()])
    found["ranks differ by"] = max(
        (other - mine).abs().max() for other in distributed.gather(mine))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = work(Path(sys.argv[1]))
    if distributed.rank() == 0:
        torch.save(result, Path(sys.argv[1]) / "found.pt")
