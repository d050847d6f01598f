from __future__ import annotations

import pytest
import torch

from tests.runtime.conftest import convnet, mlp, rng

__all__ = ["convnet", "mlp", "rng"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
