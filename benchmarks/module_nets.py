"""Networks of timm, transformers, segmentation_models_pytorch and ultralytics, made small.

Random weights, dropout and drop path on where the model has them, BatchNorms of their own taken
out (what is left of timm's BatchNormAct2d stays); each builds a module and what its forward takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.timm_models import timm_models

Built = tuple[nn.Module, Any]

TIMM: dict[str, dict[str, Any]] = {
    "resnet18": {"drop_path_rate": 0.2}, "resnest14d": {}, "resnetv2_50": {"drop_path_rate": 0.2},
    "regnety_002": {"drop_path_rate": 0.2}, "nf_regnet_b0": {}, "densenet121": {},
    "efficientnet_b0": {"drop_path_rate": 0.2}, "mobilenetv3_small_050": {}, "ghostnet_050": {},
    "convnext_atto": {"drop_path_rate": 0.2}, "convmixer_768_32": {}, "fastvit_t8": {},
    "repvit_m0_9": {}, "poolformer_s12": {"drop_path_rate": 0.2}, "levit_128s": {"size": 224},
    "mixer_s32_224": {"size": 224, "drop_path_rate": 0.2},
    "vit_tiny_patch16_224": {"size": 224, "drop_path_rate": 0.2},
    "swin_tiny_patch4_window7_224": {"size": 224, "drop_path_rate": 0.2},
    "edgenext_xx_small": {}, "mobilevit_xxs": {},
}  # fmt: skip
"""Options of timm.create_model; ``size`` is that of the images, 64 where it is not given."""

_TEXT = {"vocab_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32,
         "intermediate_size": 64}  # fmt: skip
_IMAGE = {"image_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32,
          "intermediate_size": 64}  # fmt: skip
_LLAMA = {**_TEXT, "num_key_value_heads": 2, "use_cache": False}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForSequenceClassification": ("BertConfig", _TEXT),
    "DistilBertModel": ("DistilBertConfig", {"vocab_size": 100, "n_layers": 2, "n_heads": 4,
                                             "dim": 32, "hidden_dim": 64}),
    "RobertaModel": ("RobertaConfig", _TEXT),
    "ElectraModel": ("ElectraConfig", {**_TEXT, "embedding_size": 32}),
    "GPT2Model": ("GPT2Config", {"vocab_size": 100, "n_layer": 2, "n_head": 4, "n_embd": 32,
                                 "use_cache": False}),
    "LlamaForCausalLM": ("LlamaConfig", _LLAMA),
    "Qwen2Model": ("Qwen2Config", _LLAMA),
    "T5ForConditionalGeneration": ("T5Config", {"vocab_size": 100, "d_model": 32, "d_kv": 8,
                                                "d_ff": 64, "num_layers": 2, "num_heads": 4,
                                                "use_cache": False}),
    "ViTModel": ("ViTConfig", {**_IMAGE, "patch_size": 8}),
    "CLIPVisionModel": ("CLIPVisionConfig", {**_IMAGE, "patch_size": 8}),
    "ConvNextModel": ("ConvNextConfig", {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32],
                                         "drop_path_rate": 0.2}),
    "Wav2Vec2Model": ("Wav2Vec2Config", {**_TEXT, "conv_dim": (16, 16), "conv_kernel": (10, 3),
                                         "conv_stride": (5, 2), "num_conv_pos_embeddings": 16,
                                         "num_conv_pos_embedding_groups": 4,
                                         "apply_spec_augment": False,
                                         "num_feat_extract_layers": 2}),
}  # fmt: skip


def plain(net: nn.Module) -> nn.Module:
    """The same network without its BatchNorms, in place."""
    for holder in list(net.modules()):
        for name, child in holder.named_children():
            if isinstance(child, _BatchNorm):
                rest = [getattr(child, k) for k in ("drop", "act") if hasattr(child, k)]
                setattr(holder, name, nn.Sequential(*rest) if rest else nn.Identity())
                for one in rest:  # it would write into what the BatchNorm has only read
                    one.inplace = False
    return net


def _timm(name: str, *, size: int = 64, **options: Any) -> Built:
    models, why = timm_models()
    if not models:
        raise ImportError(why)
    import timm

    net = plain(timm.create_model(name, num_classes=10, **options))
    for p in net.parameters():
        if p.dim() > 1 and not p.any():  # a last layer that starts at zero would hide all else
            nn.init.trunc_normal_(p, std=0.02)
    return net, torch.randn(4, 3, size, size)


def _transformer(name: str, config: str, options: dict[str, Any]) -> Built:
    timm_models()  # transformers imports torchvision, too
    import transformers

    net = getattr(transformers, name)(getattr(transformers, config)(**options))
    tokens = torch.randint(3, 100, (4, 12))
    if "Wav2Vec2" in name:
        return net, {"input_values": torch.randn(4, 800)}
    if "image_size" in options or "ConvNext" in name:
        return net, {"pixel_values": torch.randn(4, 3, 32, 32)}
    if "T5" in name:
        return net, {"input_ids": tokens, "decoder_input_ids": tokens[:, :8]}
    return net, {"input_ids": tokens}


def _unet() -> Built:
    import segmentation_models_pytorch as smp

    net = smp.Unet("tu-resnet18", encoder_weights=None, classes=3)
    return plain(net), torch.randn(4, 3, 64, 64)


def _yolo() -> Built:
    from ultralytics.nn.tasks import DetectionModel

    net = DetectionModel("yolov8n.yaml", nc=4, verbose=False)
    return plain(net), torch.randn(4, 3, 64, 64)


NETS: dict[str, Callable[[], Built]] = {
    **{name: partial(_timm, name, **options) for name, options in TIMM.items()},
    **{name: partial(_transformer, name, *held) for name, held in TRANSFORMERS.items()},
    "smp.Unet (tu-resnet18)": _unet,
    "YOLOv8n": _yolo,
}
"""Builders, by name; one whose package is missing raises ImportError."""
