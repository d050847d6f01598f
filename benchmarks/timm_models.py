"""Networks of timm (pip install timm), where it is installed; weights are random."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

Model = tuple[torch.nn.Module, tuple[torch.Tensor, ...]]

NAMES = (
    "mobilenetv2_050", "mobilenetv3_small_050", "efficientnet_b0", "regnetx_002", "resnetv2_50",
    "ghostnet_050", "repvgg_a0", "levit_128s", "mobileone_s0", "mobilevit_xxs", "rexnet_100",
    "tinynet_e", "lcnet_035", "hardcorenas_a", "resnest14d",
)  # fmt: skip
"""Small ones with BN, of as many families."""

FIXED = {"levit_128s": 224}
"""Sizes of the images that a network insists on."""

_OPERATORS = ("nms", "qnms")
_registered: list[Any] = []


def timm_models() -> tuple[dict[str, Callable[[], Model]], str]:
    """Builders by name; and why there are none."""
    if importlib.util.find_spec("timm") is None:
        return {}, "timm is not installed"
    try:
        timm = _import()
    except Exception as error:  # noqa: BLE001 - torchvision raises whatever its build meets
        return {}, f"timm cannot be imported: {error}"
    return {name: partial(_make, timm, name) for name in NAMES}, ""


def _import() -> Any:
    """timm imports torchvision, whose operators are missing if it is for another build of torch.

    No network needs them; torchvision only wants to find their names.
    """
    with contextlib.suppress(ImportError, RuntimeError):
        return importlib.import_module("timm")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _registered.append(library)  # it takes its operators with it when it goes
    return importlib.import_module("timm")


def _make(timm: Any, name: str) -> Model:
    net = timm.create_model(name, num_classes=10)
    size = FIXED.get(name, 96)
    return net, (torch.randn(4, 3, size, size),)
