"""Recurrent layers whose input-to-hidden contribution is normalised, as one torch module."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.rnn import PackedSequence

from bnpass.passes.inspect import Finding, lint_numbers

Tensor = torch.Tensor
States = tuple[Tensor, ...]


class NormedRecurrent(nn.Module):
    """RNN, LSTM or GRU with ``BN(W_ih x)`` instead of ``W_ih x + b_ih``, over time and batch.

    Every layer and direction has a BatchNorm of its own, ``bn_ih_l0``, ``bn_ih_l0_reverse``, ...,
    over all gates. It takes what torch's module takes and returns what that returns; parameters
    keep torch's names. The hidden-to-hidden part keeps its bias, which a GRU needs inside of its
    reset gate. A state_dict of torch's module loads: ``bias_ih`` moves into beta.

    Of a PackedSequence the real steps alone are normalised, and enter the statistics. The steps
    of a padded tensor all do: pack sequences of different lengths.

    Source: Laurent et al. 2015 (arXiv:1510.01378), section 3.

    Args:
        source: torch's module; its parameters are taken over, ``bias_ih`` is left out.
        norms: a BatchNorm over gates * hidden channels for each layer and direction, in torch's
            order of parameters.
    """

    def __init__(self, source: nn.RNNBase, norms: list[nn.Module]) -> None:
        super().__init__()
        self.kind = source.mode.partition("_")[0]
        self.mode, self.bias, self.batch_first = source.mode, source.bias, source.batch_first
        self.input_size, self.hidden_size = source.input_size, source.hidden_size
        self.num_layers, self.bidirectional = source.num_layers, source.bidirectional
        self.dropout, self.proj_size = source.dropout, source.proj_size
        for name, parameter in source.named_parameters(recurse=False):
            if not name.startswith("bias_ih"):
                self.register_parameter(name, parameter)
        for part, norm in zip(self.parts, norms, strict=True):
            self.add_module(norm_name(part), norm)
        self.training = source.training

    @property
    def parts(self) -> list[str]:
        """Names of the layers' directions: ``l0``, ``l0_reverse``, ``l1`` ..."""
        return parts(self)

    def extra_repr(self) -> str:
        """What torch prints for the module that this one was made of."""
        return f"{self.kind}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"

    def flatten_parameters(self) -> None:
        """Nothing: the weights come together in every call."""

    def forward(self, x: Any, hx: Any = None) -> tuple[Any, Any]:
        """The output of the last layer, and the last states of all layers.

        Args:
            x: (time, batch, input), (batch, time, input) for ``batch_first``, (time, input), or a
                PackedSequence.
            hx: the first states as for torch's module, zeros by default.
        """
        given = hx if isinstance(hx, tuple) else () if hx is None else (hx,)
        out: Any
        if isinstance(x, PackedSequence):
            out, states = self._packed(x, given)
        elif x.dim() == 2:
            out, states = self._run(x.unsqueeze(1), [h.unsqueeze(1) for h in given], None)
            out, states = out.squeeze(1), tuple(h.squeeze(1) for h in states)
        elif x.dim() == 3:
            out, states = self._run(x.transpose(0, 1) if self.batch_first else x, [*given], None)
            out = out.transpose(0, 1) if self.batch_first else out
        else:
            raise ValueError(f"expected an input of rank 2 or 3, got {x.dim()}")
        return out, states if self.kind == "LSTM" else states[0]

    def _packed(self, x: PackedSequence, given: States) -> tuple[PackedSequence, States]:
        if x.sorted_indices is not None:
            given = tuple(h.index_select(1, x.sorted_indices) for h in given)
        out, states = self._run(x.data, [*given], x.batch_sizes)
        if x.unsorted_indices is not None:
            states = tuple(h.index_select(1, x.unsorted_indices) for h in states)
        packed = PackedSequence(out, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        return packed, states

    def _run(
        self, value: Tensor, given: list[Tensor], sizes: Tensor | None
    ) -> tuple[Tensor, States]:
        """All layers on (time, batch, input), or on packed (steps, input) with ``batch_sizes``."""
        batch = value.shape[1] if sizes is None else int(sizes[0])
        states = given or self._zeros(batch)
        backwards = None if sizes is None else reversal(sizes).to(value.device)
        width = 2 if self.bidirectional else 1
        outputs: list[Tensor] = []
        finals: list[States] = []
        for number, part in enumerate(self.parts):
            first = tuple(h[number : number + 1].contiguous() for h in states)
            p = self._contribution(value, part)
            if part.endswith("_reverse"):
                out, final = self._recur(_flip(p, backwards), part, first, sizes)
                out = _flip(out, backwards)
            else:
                out, final = self._recur(p, part, first, sizes)
            outputs.append(out)
            finals.append(final)
            if len(outputs) == width:
                value, outputs = torch.cat(outputs, -1), []
                if self.dropout and number + 1 < len(self.parts):
                    value = F.dropout(value, self.dropout, self.training)
        return value, tuple(torch.cat(hs) for hs in zip(*finals, strict=True))

    def _zeros(self, batch: int) -> list[Tensor]:
        sizes = [self.proj_size or self.hidden_size]
        sizes += [self.hidden_size] if self.kind == "LSTM" else []
        like: Tensor = self.get_parameter("weight_hh_l0")
        return [like.new_zeros(len(self.parts), batch, n) for n in sizes]

    def _contribution(self, value: Tensor, part: str) -> Tensor:
        p = F.linear(value, self.get_parameter(f"weight_ih_{part}"))
        norm = self.get_submodule(norm_name(part))
        if p.dim() == 2:
            normed: Tensor = norm(p)
            return normed
        normed = norm(p.permute(1, 2, 0))  # samples first, as those expect who take it over
        return normed.permute(2, 0, 1)

    def _recur(
        self, p: Tensor, part: str, first: States, sizes: Tensor | None
    ) -> tuple[Tensor, States]:
        """One layer in one direction: torch's own kernels, with an identity for W_ih."""
        held = self.get_parameter(f"weight_hh_{part}")
        weights = [torch.eye(held.shape[0], dtype=held.dtype, device=held.device), held]
        if self.bias:
            bias = self.get_parameter(f"bias_hh_{part}")
            weights += [torch.zeros_like(bias), bias]
        if self.proj_size:
            weights.append(self.get_parameter(f"weight_hr_{part}"))
        kernel = getattr(torch._VF, self.mode.lower())
        states = first if self.kind == "LSTM" else first[0]
        p = p.to(held.dtype).contiguous()
        if p.is_cuda:
            weights = _in_one_piece(weights)
        rest = (weights, self.bias, 1, 0.0, self.training, False)
        made = kernel(p, states, *rest, False) if sizes is None else kernel(p, sizes, states, *rest)
        return made[0], tuple(made[1:])

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **more: Any
    ) -> None:
        if not any(key.startswith(prefix + norm_name("")) for key in state_dict):
            for part in self.parts:
                bias = state_dict.pop(f"{prefix}bias_ih_{part}", None)
                norm: Any = self.get_submodule(norm_name(part))
                for key, tensor in _unchanging(norm, bias).items():
                    state_dict[f"{prefix}{norm_name(part)}.{key}"] = tensor
        super()._load_from_state_dict(state_dict, prefix, *rest, **more)


def parts(module: Any) -> list[str]:
    """Names of the layers' directions, in torch's order of parameters."""
    ends = ["", "_reverse"] if module.bidirectional else [""]
    return [f"l{layer}{end}" for layer in range(module.num_layers) for end in ends]


def norm_name(part: str) -> str:
    """The name of the BatchNorm of a layer's direction."""
    return f"bn_ih_{part}"


def reversal(sizes: Tensor) -> Tensor:
    """Where in packed data each step of a sequence comes from when every one runs backwards.

    Args:
        sizes: ``batch_sizes`` of a PackedSequence, (time,): how many sequences have each step.
    """
    starts = sizes.cumsum(0) - sizes
    step = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    row = torch.arange(len(step)) - starts[step]
    lengths = torch.bincount(row)
    return starts[lengths[row] - 1 - step] + row


def _flip(value: Tensor, backwards: Tensor | None) -> Tensor:
    return value.flip(0) if backwards is None else value.index_select(0, backwards)


def _in_one_piece(weights: list[Tensor]) -> list[Tensor]:
    """The same weights side by side in memory, matrices in front, as cuDNN wants them.

    It warns of others, and copies them itself.
    """
    order = sorted(range(len(weights)), key=lambda i: -weights[i].dim())
    flat = torch.cat([weights[i].reshape(-1) for i in order])
    pieces = dict(zip(order, flat.split([weights[i].numel() for i in order]), strict=True))
    return [pieces[i].view(w.shape) for i, w in enumerate(weights)]


def _unchanging(norm: Any, bias: Tensor | None) -> dict[str, Tensor]:
    """Entries of a BatchNorm that only adds ``bias`` in eval mode."""
    beta = torch.zeros_like(norm.bias) if bias is None else bias.to(norm.bias)
    return {
        "weight": torch.full_like(norm.weight, (1.0 + norm.eps) ** 0.5),
        "bias": beta,
        "running_mean": torch.zeros_like(norm.running_mean),
        "running_var": torch.ones_like(norm.running_var),
        "num_batches_tracked": torch.zeros_like(norm.num_batches_tracked),
    }


def inner_norms(gm: fx.GraphModule) -> dict[str, nn.Module]:
    """The norms inside of every NormedRecurrent, by path."""
    return {
        f"{path}.{norm_name(part)}": module.get_submodule(norm_name(part))
        for path, module in gm.named_modules() if isinstance(module, NormedRecurrent)
        for part in module.parts
    }


def lint_norm(path: str, norm: nn.Module) -> list[Finding]:
    """What the parameters of one of them say."""
    var = norm.get_buffer("running_var")
    ones, zeros = torch.ones_like(var), torch.zeros_like(var)
    own = dict(norm.named_parameters())
    parts = (own.get("weight", ones), own.get("bias", zeros), norm.get_buffer("running_mean"), var)
    gamma, beta, mean, variance = (p.detach().double().cpu().numpy() for p in parts)
    eps = float(getattr(norm, "eps", 1e-5))
    return lint_numbers(path, (gamma, beta, mean, variance), eps, torch.finfo(var.dtype).max)
