"""One operator between norms, known or not: whatever folds, the result is the same."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnpass
from tests.frontends.fx.helpers import Fn, close, inputs, prepared, run

CASES = {
    "narrow": lambda s,y: y.narrow(1,1,4),
    "flip": lambda s,y: y.flip(1),
    "flip2": lambda s,y: torch.flip(y,[1,2]),
    "roll": lambda s,y: torch.roll(y,1,1),
    "repeat": lambda s,y: y.repeat(1,2,1,1)[:, :6],
    "repeat3": lambda s,y: y.repeat(2,1,1,1,1)[1],
    "unbind": lambda s,y: torch.stack(y.unbind(1)[::-1],1),
    "unshuffle": lambda s,y: F.pixel_unshuffle(y,2),
    "shuffle2": lambda s,y: F.pixel_shuffle(F.pixel_unshuffle(y,2),2),
    "padc": lambda s,y: F.pad(y,(1,1,2,0),value=0.5),
    "padch": lambda s,y: F.pad(y,(0,0,0,0,1,2)),
    "padr": lambda s,y: F.pad(y,(1,1,2,2),mode="reflect"),
    "padrep": lambda s,y: F.pad(y,(1,1,2,2),mode="replicate"),
    "padcirc": lambda s,y: F.pad(y,(1,1,2,2),mode="circular"),
    "neg": lambda s,y: -y,
    "sumdim": lambda s,y: y.sum((2,3),keepdim=True),
    "sum1": lambda s,y: y.sum(1,keepdim=True).expand(-1,6,-1,-1),
    "mean1": lambda s,y: y.mean(1,keepdim=True)+y,
    "max1": lambda s,y: torch.max(y,1,keepdim=True)[0]+y,
    "reshape": lambda s,y: y.reshape(y.shape[0],2,3,-1).transpose(1,2).reshape(y.shape[0],6,8,8),
    "chunk": lambda s,y: torch.cat(y.chunk(2,1)[::-1],1),
    "split": lambda s,y: torch.cat([v*(i+1) for i,v in enumerate(torch.split(y,[1,2,3],1))],1),
    "where": lambda s,y: torch.where(y>0,y,y*2),
    "glu": lambda s,y: torch.cat([F.glu(y,1)]*2,1),
    "self_mul": lambda s,y: y*y,
    "selfadd": lambda s,y: y+y,
    "double": lambda s,y: y+F.relu(y),
    "se": lambda s,y: y*torch.sigmoid(y.mean((2,3),keepdim=True)),
    "softmax": lambda s,y: y.softmax(1),
    "addalpha": lambda s,y: torch.add(y,y.flip(3),alpha=2),
    "rsubt": lambda s,y: torch.rsub(y,1.0),
    "rdiv": lambda s,y: 1.0/(y*y+1),
    "pow": lambda s,y: y**2,
    "floor": lambda s,y: y//1,
    "maskidx": lambda s,y: y*(y>0),
    "none": lambda s,y: y[:,None].squeeze(1),
    "ellipsis": lambda s,y: y[...,::2][...,1:3],
    "idxsel": lambda s,y: y.index_select(1,s.idx),
    "gather": lambda s,y: y[:,s.idx],
    "instn": lambda s,y: F.instance_norm(y),
    "gn": lambda s,y: F.group_norm(y,3,s.g,s.h),
    "lrn": lambda s,y: F.local_response_norm(y,3),
    "clone": lambda s,y: y.clone().contiguous().detach(),
    "float": lambda s,y: y.float().double(),
    "type": lambda s,y: y.to(torch.float32).to(y.dtype),
    "iadd": lambda s,y: operator.iadd(y,1.5),
    "imul": lambda s,y: y.mul_(s.g.view(6,1,1)),
    "isub": lambda s,y: y.sub_(y.mean()),
    "addcmul": lambda s,y: torch.addcmul(y,y,y),
    "einsum2": lambda s,y: torch.einsum("nchw,cd->ndhw",y,s.m),
    "matmulT": lambda s,y: torch.matmul(s.m,y.flatten(2)).view(-1,6,8,8),
    "bmm": lambda s,y: torch.bmm(y.flatten(2).transpose(1,2), y.flatten(2)),
    "linlast": lambda s,y: F.linear(y.permute(0,2,3,1),s.m,s.g).permute(0,3,1,2),
    "linW": lambda s,y: F.linear(y,s.w8),
    "mT": lambda s,y: y.mT,
    "adaptive": lambda s,y: F.adaptive_avg_pool2d(y,3),
    "adaptmax": lambda s,y: F.adaptive_max_pool2d(y,(2,None)),
    "lp": lambda s,y: F.lp_pool2d(y.abs(),2,2),
    "avgceil": lambda s,y: F.avg_pool2d(y,3,2,ceil_mode=True),
    "avgdiv": lambda s,y: F.avg_pool2d(y,2,divisor_override=3),
    "tile": lambda s,y: torch.tile(y,(1,1,2,1)),
    "expandch": lambda s,y: y.mean(1,keepdim=True).expand_as(y),
    "minmax": lambda s,y: torch.maximum(y,torch.minimum(y.flip(2),y)),
    "clampt": lambda s,y: torch.clamp(y,min=s.g.view(6,1,1)),
    "prelu": lambda s,y: F.prelu(y,s.g),
    "std": lambda s,y: (y-y.mean((2,3),keepdim=True))/y.std((2,3),keepdim=True),
    "swap": lambda s,y: y.swapaxes(1,2).swapaxes(2,1),
    "movedim": lambda s,y: y.movedim(1,-1).movedim(-1,1),
    "flattenun": lambda s,y: y.flatten(1,2).unflatten(1,(6,8)),
    "view_dtype": lambda s,y: y.view(torch.int64).view(torch.float64),
    "rotate": lambda s,y: torch.rot90(y,1,(2,3)),
    "inplace_view": lambda s, y: y * 1 + y.flatten(2).relu_().view(-1, 6, 8, 8),
    "threshold_": lambda s,y: F.threshold_(y,0.1,0.0)+y,
    "ceil": lambda s,y: y.ceil_(),
    "fill": lambda s,y: (y[:,0].fill_(2.0), y)[1],
    "copy": lambda s,y: y.copy_(y.flip(2)),
    "masked": lambda s,y: y.masked_fill(y>0,0.0),
    "masked_": lambda s,y: y.masked_fill_(y>0,0.0),
    "drop": lambda s,y: F.dropout2d(y,0.5,s.training)*2,
    "outer": lambda s,y: y+s.g.view(6,1,1)*2-s.h.view(1,6,1,1).exp(),
    "const_b": lambda s,y: y*s.m.mean(),
    "bcast": lambda s,y: y.mean((2,3))[:, :, None, None]+s.big,
    "channels_sum": lambda s,y: y+s.big,
}  # fmt: skip


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(5)))


def network(function, behind):
    """Conv, norm, the operator; and, if its result has rank 4, another norm and conv."""

    def forward(s, x):
        y = function(s, s.n(s.a(x)))
        return s.c(s.n2(y)) if behind else y

    return Fn(
        forward, a=nn.Conv2d(3, 6, 3, padding=1), n=nn.BatchNorm2d(6), n2=nn.BatchNorm2d(6),
        c=nn.Conv2d(6, 4, 3), g=parameter(6), h=parameter(6), m=parameter(6, 6),
        w8=parameter(8, 8), big=parameter(6, 8, 8), idx=torch.tensor([0, 2, 2, 1, 5, 4]),
    )  # fmt: skip


def test_a_fold_that_is_right_at_one_size_alone_stays():
    net, x = network(lambda s, y: y.view(-1, 6 * 64).view(-1, 6, 8, 8), behind=True), (2, 3, 8, 8)
    net = prepared(net)
    plan = bnpass.fold(net, inputs(x), plan_only=True)
    assert any("twice as long" in entry.reason for entry in plan.refused)
    folded = bnpass.fold(net, inputs(x))
    for shape in (x, (2, 3, 16, 8)):
        close(run(folded, inputs(shape)), run(net, inputs(shape)))


@pytest.mark.parametrize("name", CASES)
def test_result_is_the_same(name):
    torch.manual_seed(0)
    x = inputs((2, 3, 8, 8))
    net = prepared(network(CASES[name], behind=True))
    try:
        want = run(net, x)
    except (RuntimeError, ValueError):  # a norm takes rank 4 and 6 channels
        net = prepared(network(CASES[name], behind=False))
        want = run(net, x)
    tolerance = 1e-5 if name in ("float", "type") else 1e-9
    close(run(bnpass.fold(net, x), x), want, tolerance)
