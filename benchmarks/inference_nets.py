"""Networks whose inference is measured: timm's, transformers' and a few of our own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.timm_models import timm_models

Model = tuple[nn.Module, tuple[torch.Tensor, ...]]

TIMM = {
    "convmixer_768_32": 64, "convnext_atto": 64, "fastvit_t8": 64, "repvit_m0_9": 64,
    "poolformer_s12": 64, "levit_128s": 224, "nf_regnet_b0": 64, "resnet18": 64,
    "mobilenetv2_050": 64, "mobilenetv3_small_050": 64, "efficientnet_b0": 64, "repvgg_a0": 64,
    "mobileone_s0": 64, "ghostnet_050": 64, "regnety_002": 64, "densenet121": 64,
    "vit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224, "mixer_s32_224": 224,
    "edgenext_xx_small": 64,
}  # fmt: skip
"""Names in timm and sizes of their images."""


class _Output(nn.Module):
    """The tensor of a transformers model's output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: (batch, tokens)."""
        return self.net(input_ids=ids, use_cache=False, return_dict=True)[0]


def _timm(name: str, size: int) -> Model:
    models, why = timm_models()
    if not models:
        raise ImportError(why)
    import timm

    return timm.create_model(name, num_classes=10), (torch.randn(1, 3, size, size),)


def _transformer(model: str, **config: Any) -> Model:
    timm_models()  # registers what torchvision misses: transformers imports it as well
    import transformers

    kind = getattr(transformers, f"{model}Config")
    net = getattr(transformers, f"{model}Model")(kind(**config, attn_implementation="eager"))
    return _Output(net), (torch.randint(0, 100, (1, 32)),)


def mlp() -> Model:
    """Linear layers with a scale behind each."""
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(256))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(256, 256), Scaled(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10)), (torch.randn(1, 256),)


_SMALL = {"vocab_size": 100, "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 128,
          "intermediate_size": 256}  # fmt: skip
NETS: dict[str, Callable[[], Model]] = {
    "mlp": mlp,
    **{name: partial(_timm, name, size) for name, size in TIMM.items()},
    "bert": partial(_transformer, "Bert", **_SMALL),
    "distilbert": partial(_transformer, "DistilBert", vocab_size=100, n_layers=3, n_heads=4,
                          dim=128, hidden_dim=256),
    "gpt2": partial(_transformer, "GPT2", vocab_size=100, n_layer=3, n_head=4, n_embd=128),
    "llama": partial(_transformer, "Llama", **_SMALL, num_key_value_heads=4),
}  # fmt: skip
"""Builders of (module, example inputs) by name."""
