"""Normalisations, and Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from bnpass.frontends.fx.call import Call, UnknownError
from bnpass.frontends.fx.targets import function, module
from bnpass.frontends.fx.vocabulary.layers import batched
from bnpass.importer.modules import BatchNorm

_KIND = "BatchNormalization"
_SLOTS = {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"}


def _filled(call: Call, names: list[str], channels: int, dtype: str) -> list[str]:
    """Gamma 1 and beta 0 where a norm has none."""
    made = list(names)
    for i, role, array in ((0, "ones", np.ones(channels)), (1, "zeros", np.zeros(channels))):
        if not made[i]:
            made[i] = call.constant(role, array, dtype)
    return made


def _batch_norm(call: Call, x: Any, names: list[str], eps: float, training: bool) -> None:
    channels = call.shape(x)[1]
    if not isinstance(channels, int):
        raise UnknownError("the number of channels is not known")
    names = _filled(call, names, channels, call.info(x).dtype)
    attrs = {"epsilon": float(eps), "training": training}
    call.emit(_KIND, [call.value(x), *names], attrs, slots=_SLOTS)


@module(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNorm)
def batch_norm_module(call: Call, x: Any) -> None:
    """BatchNormalization; without running statistics it takes those of the batch in every mode."""
    m: Any = call.module
    names = [call.parameter(n) for n in _SLOTS.values()]
    training = m.training or not all(names[2:])
    _batch_norm(call, x, names, m.eps, training)


@function("F.batch_norm")
def batch_norm(
    call: Call, x: Any, running_mean: Any, running_var: Any, weight: Any = None,
    bias: Any = None, training: Any = False, momentum: float = 0.1, eps: float = 1e-5,
) -> None:  # fmt: skip
    """BatchNormalization."""
    del momentum
    names = [call.value(v) for v in (weight, bias, running_mean, running_var)]
    live = call.training(training) or not all(names[2:])
    _batch_norm(call, x, names, eps, live)


@function("torch.batch_norm", "aten.batch_norm")
def batch_norm_aten(
    call: Call, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any,
    training: Any, momentum: float, eps: float, cudnn_enabled: bool = True,
) -> None:  # fmt: skip
    """BatchNormalization."""
    del momentum, cudnn_enabled
    names = [call.value(v) for v in (weight, bias, running_mean, running_var)]
    live = call.training(training) or not all(names[2:])
    _batch_norm(call, x, names, eps, live)


# --- statistics of the input ---------------------------------------------------------------------


def _scaled(call: Call, kind: str, x: Any, names: list[str], attrs: dict[str, Any]) -> None:
    if not names[0]:
        raise UnknownError("a norm without scale and bias")
    call.emit(kind, [call.value(x), *names], attrs, slots={1: "weight", 2: "bias"})


@module(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm_module(call: Call, x: Any) -> None:
    """InstanceNormalization; with running statistics it is another operator in eval mode."""
    m: Any = call.module
    batched(call, x, int(type(m).__name__[-2]))
    if m.track_running_stats:
        raise UnknownError("running statistics")
    names = [call.parameter("weight"), call.parameter("bias")]
    _scaled(call, "InstanceNormalization", x, names, {"epsilon": float(m.eps)})


@function("F.instance_norm")
def instance_norm(
    call: Call, x: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None,
    bias: Any = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> None:  # fmt: skip
    """InstanceNormalization."""
    del momentum, running_mean, running_var
    if use_input_stats is not True:
        raise UnknownError("running statistics")
    names = [call.value(weight), call.value(bias)]
    _scaled(call, "InstanceNormalization", x, names, {"epsilon": float(eps)})


@module(nn.GroupNorm)
def group_norm_module(call: Call, x: Any) -> None:
    """GroupNormalization with one scale a channel."""
    m: Any = call.module
    names = [call.parameter("weight"), call.parameter("bias")]
    _scaled(call, "GroupNormalization", x, names, {"num_groups": m.num_groups})


@function("group_norm")
def group_norm(
    call: Call, x: Any, num_groups: int, weight: Any = None, bias: Any = None,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> None:  # fmt: skip
    """GroupNormalization with one scale a channel."""
    del cudnn_enabled, eps
    names = [call.value(weight), call.value(bias)]
    _scaled(call, "GroupNormalization", x, names, {"num_groups": num_groups})


@module(nn.LayerNorm)
def layer_norm_module(call: Call, x: Any) -> None:
    """LayerNormalization over the last axes."""
    m: Any = call.module
    names = [call.parameter("weight"), call.parameter("bias")]
    _scaled(call, "LayerNormalization", x, names, {"axis": -len(m.normalized_shape)})


@function("layer_norm")
def layer_norm(
    call: Call, x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None,
    eps: float = 1e-5, cudnn_enable: bool = True,
) -> None:  # fmt: skip
    """LayerNormalization over the last axes."""
    del eps, cudnn_enable
    names = [call.value(weight), call.value(bias)]
    _scaled(call, "LayerNormalization", x, names, {"axis": -len(normalized_shape)})


# --- Dropout -------------------------------------------------------------------------------------


@module(
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout
)  # fmt: skip
def dropout_module(call: Call, x: Any) -> None:
    """Dropout."""
    m: Any = call.module
    _dropout(call, x, m.p, m.training)


@function(
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
    "feature_dropout",
)  # fmt: skip
def dropout(
    call: Call, x: Any, p: float = 0.5, training: Any = True, inplace: bool = False,
    train: Any = None,
) -> None:  # fmt: skip
    """Dropout; the flag may be the network's own mode."""
    del inplace
    _dropout(call, x, p, call.training(training if train is None else train))


def _dropout(call: Call, x: Any, ratio: Any, training: bool) -> None:
    if not isinstance(ratio, int | float):
        raise UnknownError("its ratio is computed")
    inputs = [call.value(x), call.constant("ratio", np.asarray(float(ratio), np.float32))]
    live = {"training": training and ratio > 0}
    call.emit("Dropout", inputs, live, slots={1: "p"}, scalars=[1])


@module(nn.LocalResponseNorm)
def local_response_norm_module(call: Call, x: Any) -> None:
    """LRN."""
    call.emit("LRN", [call.value(x)])


@function("local_response_norm")
def local_response_norm(call: Call, x: Any, *args: Any, **kwargs: Any) -> None:
    """LRN."""
    del args, kwargs
    call.emit("LRN", [call.value(x)])
