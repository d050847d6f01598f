"""Scaled dot product attention and rotary position embedding.

Shapes: Q (N, Hq, T, E), K (N, Hkv, S, E), V (N, Hkv, S, Ev) with Hq a multiple of Hkv; of rank 3
(N, T, Hq * E) and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

AFTER_SOFTCAP, WITH_BIAS, AFTER_SOFTMAX = 1, 2, 3
"""Values of qk_matmul_output_mode; 0 is the plain product."""


@dataclass(frozen=True)
class _Limits:
    """Which keys j a query i may see: i + offset - left <= j <= i + offset + right."""

    causal: bool
    left: int
    right: int

    @property
    def free(self) -> bool:
        return not self.causal and self.left < 0 and self.right < 0

    def allowed(self, queries: int, keys: int, offset: Tensor) -> Tensor:
        """(T, S), or (N, 1, T, S) if the offset is (N, 1, 1, 1)."""
        i = torch.arange(queries, device=offset.device).unsqueeze(1)
        ahead = torch.arange(keys, device=offset.device) - (i + offset)
        seen = torch.ones_like(ahead, dtype=torch.bool)
        if self.causal:
            seen = seen & (ahead <= 0)
        if self.left >= 0:
            seen = seen & (ahead >= -self.left)
        return seen & (ahead <= self.right) if self.right >= 0 else seen


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    lengths: Tensor | None,
    q_heads: int,
    kv_heads: int,
    scale: float | None,
    causal: bool,
    softcap: float,
    precision: torch.dtype | None,
    mode: int,
    left: int,
    right: int,
    only_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ONNX Attention (25): Y, present_key, present_value and the product of Q and K.

    Causal limits are aligned with the end of the cache. A query that may see no key gives zeros.
    """
    flat = q.dim() == 3
    if flat:
        q, k, v = _split(q, q_heads), _split(k, kv_heads), _split(v, kv_heads)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    limits = _Limits(causal, left, right)
    plain = mask is None and past_key is None and lengths is None and left < 0 and right < 0
    if plain and only_y and softcap == 0 and precision is None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)
        product = y
    else:
        past = 0 if past_key is None else past_key.shape[2]
        bias = _bias(q, k, mask, past, lengths, limits)
        y, product = _attend(q, k, v, bias, scale, softcap, precision, mode)
    return (_join(y) if flat else y), k, v, product


def _split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _bias(
    q: Tensor, k: Tensor, mask: Tensor | None, past: int, lengths: Tensor | None, limits: _Limits
) -> Tensor | None:
    """What is added to the scores: 0 or a float mask where a key is seen, -inf elsewhere."""
    keys = k.shape[2]
    bias = None if mask is None else _additive(mask, keys, q)
    if not limits.free:
        offset = torch.tensor(past, device=q.device)
        if lengths is not None and past == 0:
            offset = lengths.to(q.device).reshape(-1, 1, 1, 1) - q.shape[2]
        seen = limits.allowed(q.shape[2], keys, offset)
        bias = _add(bias, _additive(seen, keys, q))
    if lengths is not None:
        ends = lengths.to(q.device).reshape(-1, 1, 1, 1)
        bias = _add(bias, _additive(torch.arange(keys, device=q.device) < ends, keys, q))
    return bias


def _add(bias: Tensor | None, more: Tensor) -> Tensor:
    return more if bias is None else bias + more


def _additive(mask: Tensor, keys: int, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, -torch.inf)
    return F.pad(mask, (0, keys - mask.shape[-1]), value=-torch.inf)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float | None,
    softcap: float,
    precision: torch.dtype | None,
    mode: int,
) -> tuple[Tensor, Tensor]:
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    root = (q.shape[3] ** -0.5 if scale is None else scale) ** 0.5
    product = scores = torch.matmul(q * root, k.transpose(2, 3) * root)
    if softcap > 0:
        scores = torch.tanh(scores / softcap) * softcap
        product = scores  # modes 0 and 1 both mean what softcap leaves, as in ONNX's reference
    if bias is not None:
        scores = scores + bias
    weights = _softmax(scores if precision is None else scores.to(precision), bias).to(q.dtype)
    product = {WITH_BIAS: scores, AFTER_SOFTMAX: weights}.get(mode, product)
    return torch.matmul(weights, v), product


def _softmax(scores: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.softmax(scores, -1)
    blind = torch.isneginf(bias).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)


def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    heads: int,
    width: int,
    interleaved: bool,
) -> Tensor:
    """ONNX RotaryEmbedding (23): the first ``width`` features of each head, turned in pairs.

    Args:
        x: (N, H, T, E) or (N, T, H * E).
        cos: and ``sin``: (P, width / 2) with positions (N, T), else (N, T, width / 2).
        positions: rows of the tables.
        heads: H, for an input of rank 3.
        width: 0 for all of E.
        interleaved: pairs are (0, 1), (2, 3), ... instead of the two halves.
    """
    flat = x.dim() == 3
    h = x.reshape(*x.shape[:2], heads, -1) if flat else x.transpose(1, 2)
    width = width or h.shape[-1]
    turned, rest = h[..., :width], h[..., width:]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    pair = (cos * a - sin * b, sin * a + cos * b)
    turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    h = torch.cat([turned, rest], -1)
    return h.flatten(2) if flat else h.transpose(1, 2)
