"""Insertion into torch modules: where, what is dropped, and that it folds back."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnpass
from tests.frontends.fx.helpers import Fn, close, inputs, norms, randomize, run


def names(module):
    return {n for n, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


class Lenet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3)
        self.act, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(24, 16), nn.Linear(16, 10)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.pool(self.act(self.conv1(x)))
        x = self.act(self.pool(self.conv2(x)))
        x = self.drop(torch.flatten(x, 1))
        return self.fc2(F.gelu(self.fc1(x)))


X = inputs((4, 1, 14, 14))


def lenet():
    torch.manual_seed(0)
    return Lenet().double().eval()


ACTIVATIONS = {
    "relu": F.relu, "relu_": torch.relu_, "method": lambda x: x.relu(), "leaky": F.leaky_relu,
    "elu": F.elu, "selu": F.selu, "celu": F.celu, "sigmoid": torch.sigmoid, "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish, "softplus": F.softplus,
    "softsign": F.softsign, "gelu": F.gelu, "mish": F.mish, "silu": F.silu, "relu6": F.relu6,
    "hardtanh": F.hardtanh, "clamp": lambda x: x.clamp(0, 6), "clamp_min": lambda x: x.clamp(min=0),
    "threshold": lambda x: F.threshold(x, 0.1, 0.0), "swish": lambda x: x * torch.sigmoid(x),
    "module_relu": nn.ReLU(), "module_leaky": nn.LeakyReLU(), "module_prelu": nn.PReLU().double(),
    "module_elu": nn.ELU(), "module_selu": nn.SELU(), "module_celu": nn.CELU(),
    "module_sigmoid": nn.Sigmoid(), "module_tanh": nn.Tanh(), "module_relu6": nn.ReLU6(),
    "module_hardsigmoid": nn.Hardsigmoid(), "module_hardswish": nn.Hardswish(),
    "module_softplus": nn.Softplus(), "module_softsign": nn.Softsign(), "module_gelu": nn.GELU(),
    "module_mish": nn.Mish(), "module_silu": nn.SiLU(), "module_hardtanh": nn.Hardtanh(),
    "module_threshold": nn.Threshold(0.1, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_gets_one(name):
    act = ACTIVATIONS[name]
    parts = {"act": act} if isinstance(act, nn.Module) else {}
    function = (lambda s, v: s.act(v)) if parts else (lambda s, v: act(v))
    net = Fn(lambda s, x: s.b(function(s, s.a(x))), a=nn.Linear(5, 6), b=nn.Linear(6, 2), **parts)
    net = net.double().eval()
    x = inputs((3, 5))
    made = bnpass.insert(net, x, init="preserve")
    assert names(made) == {"a.output_bn"} and made.a.bias is None
    close(run(made, x), run(net, x), 1e-12)


def test_names_biases_and_modes():
    net = lenet().train()
    made = bnpass.insert(net, X)
    assert names(made) == {f"{n}.output_bn" for n in ("conv1", "conv2", "fc1")} and made.training
    assert type(made) is Lenet
    assert all(m.training for m in made.modules())
    assert made.conv1.bias is None and made.conv2.bias is None and made.fc1.bias is None
    assert made.fc2.bias is not None and net.conv1.bias is not None
    assert type(made.conv1.output_bn) is nn.BatchNorm2d
    assert type(made.fc1.output_bn) is nn.BatchNorm1d
    assert made.conv1.output_bn.weight.dtype == torch.float64


@pytest.mark.parametrize("init", ["preserve", "calibrated"])
def test_init_keeps_the_outputs(init):
    net = lenet()
    made = bnpass.insert(net, X, init=init, data=[X[0], (X[0] * 2, torch.zeros(4))])
    close(run(made, X), run(net, X), 1e-12)


def test_calibrated_statistics_are_those_of_the_bias_free_values():
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    x = inputs((40, 5))
    made = bnpass.insert(net, x, init="calibrated", data=[x[0][:30], x[0][30:]])
    free = x[0] @ net[0].weight.T
    norm = made.get_submodule("0.output_bn")
    close(norm.running_mean, free.mean(0))
    close(norm.running_var, free.var(0, correction=0))
    close(norm.bias, free.mean(0) + net[0].bias)


def test_insert_train_calibrate_fold():
    net = lenet().train()
    made = bnpass.insert(net, X)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        made(X[0]).square().mean().backward()
        optimizer.step()
    bnpass.calibrate(made, [X[0]])
    assert not made.training
    folded = bnpass.fold(made)  # the shapes are remembered
    assert not norms(folded)
    close(run(folded, X), run(made, X))
    assert set(folded.state_dict()) == set(net.state_dict())


def test_functional_dropout_follows_the_mode():
    net = Fn(lambda s, x: F.dropout(torch.relu(s.a(x)), 0.5, s.training), a=nn.Linear(50, 50))
    x = (torch.randn(4, 50),)
    made = bnpass.insert(net.eval(), x)
    made.train()
    assert not torch.equal(made(*x), made(*x))
    bnpass.calibrate(made, [x[0]])
    folded = bnpass.fold(made)
    assert torch.equal(folded(*x), folded(*x)) and not norms(folded)


@pytest.mark.parametrize("path", ["", "deepcopy"])
def test_old_state_dict_loads(path):
    net = lenet()
    made = bnpass.insert(net, X)
    made = copy.deepcopy(made) if path else made
    other = lenet()
    with torch.no_grad():
        for p in other.parameters():
            p.normal_(std=0.2)
    made.load_state_dict(other.state_dict())
    close(run(made.eval(), X), run(other, X), 1e-12)
    again = bnpass.insert(net, X)
    again.load_state_dict(randomize(made).state_dict())
    close(run(again.eval(), X), run(made, X), 0)


def test_old_state_dict_with_biases_behind_a_concat():
    def forward(s, x):
        return s.c(torch.relu(torch.cat([s.a(x), s.pool(s.b(x))], 1)))

    net = Fn(forward, a=nn.Conv2d(1, 2, 3, padding=1), b=nn.Conv2d(1, 3, 3, padding=1),
             pool=nn.AvgPool2d(3, 1, 1, count_include_pad=False), c=nn.Conv2d(5, 2, 1))  # fmt: skip
    net = net.double().eval()
    made = bnpass.insert(net, X)
    assert made.a.bias is None and made.b.bias is None
    made.load_state_dict(net.state_dict())
    close(run(made, X), run(net, X), 1e-12)


def test_old_state_dict_with_the_constant_of_an_add():
    net = Fn(lambda s, x: torch.tanh(x @ s.w + s.shift) @ s.v, w=nn.Parameter(torch.randn(5, 6)),
             shift=nn.Parameter(torch.randn(6)), v=nn.Parameter(torch.randn(6, 2)))  # fmt: skip
    net = net.double().eval()
    x = inputs((3, 5))
    made = bnpass.insert(net, x)
    assert not hasattr(made, "shift")
    made.load_state_dict(net.state_dict())
    close(run(made, x), run(net, x), 1e-12)


def test_clone_for_a_reader_that_must_not_see_it():
    def forward(s, x):
        y = s.a(x)
        return s.b(torch.relu(y)) + torch.softmax(y, 1).sum()

    net = Fn(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 2)).double().eval()
    x = inputs((3, 5))
    assert not norms(bnpass.insert(net, x))
    made = bnpass.insert(net, x, clone=True, init="preserve")
    assert len(norms(made)) == 1
    close(run(made, x), run(net, x), 1e-12)
    folded = bnpass.fold(randomize(made))
    assert not norms(folded)
    close(run(folded, x), run(made, x))


def test_beside_recurrent_layers():
    net = Fn(lambda s, x: s.b(torch.relu(s.f(s.l(s.e(x))[0]))),
             e=nn.Embedding(9, 5),
             f=nn.Linear(4, 6), l=nn.LSTM(5, 4, batch_first=True), b=nn.Linear(6, 2))  # fmt: skip
    net.eval()
    x = (torch.randint(0, 9, (3, 7)),)
    made = bnpass.insert(net, x, init="preserve")
    assert names(made) == {"l.bn_ih_l0", "f.output_bn"}
    close(run(made, x), run(net, x), 1e-5)


ATTENTION = {
    "attention": (nn.MultiheadAttention, lambda m, y: m(y, y, y, need_weights=False)[0]),
    "encoder_layer": (
        partial(nn.TransformerEncoderLayer, dim_feedforward=12), lambda m, y: m(y)
    ),
    "encoder": (
        lambda n, heads, batch_first: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(n, heads, 12, batch_first=batch_first), 2
        ),
        lambda m, y: m(y),
    ),
}  # fmt: skip


INNER = {
    "attention": (), "encoder_layer": ("inner.linear1.output_bn",),
    "encoder": tuple(f"inner.layers.{i}.linear1.output_bn" for i in range(2)),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_passes_through_and_encoders_get_norms_inside(name):
    make, call = ATTENTION[name]
    torch.manual_seed(0)
    net = Fn(
        lambda s, x: s.out(torch.relu(s.hidden(call(s.inner, torch.relu(s.first(x)))))),
        first=nn.Linear(5, 8), inner=make(8, 2, batch_first=True), hidden=nn.Linear(8, 6),
        out=nn.Linear(6, 2),
    ).double().eval()  # fmt: skip
    x = inputs((3, 4, 5))
    made = bnpass.insert(net, x, init="preserve")
    assert names(made) == {"first.output_bn", "hidden.output_bn", *INNER[name]}
    assert type(made.inner) is type(net.inner)
    close(run(made, x), run(net, x), 1e-12)
    folded = bnpass.fold(randomize(made))
    assert not norms(folded)
    close(run(folded, x), run(made, x))
    inner = dict(net.inner.named_parameters())
    kept = dict(folded.get_submodule("inner").named_parameters())
    assert kept.keys() == inner.keys()
    assert all(torch.equal(kept[k], inner[k]) for k in inner if "linear1" not in k)


def test_channels_last():
    net = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 2)).double().eval()
    x = inputs((3, 4, 5))
    made = bnpass.insert(net, x, init="preserve")
    assert type(made.get_submodule("0.output_bn")) is nn.BatchNorm1d
    close(run(made, x), run(net, x), 1e-12)
    folded = bnpass.fold(randomize(made))
    assert not norms(folded) and type(folded) is nn.Sequential
    close(run(folded, x), run(made, x))


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5)])
def test_sync(shape):
    net = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 2)).double().eval()
    x = inputs(shape)
    made = bnpass.insert(net, x, sync=True, init="preserve")
    assert isinstance(made.get_submodule("0.output_bn"), nn.SyncBatchNorm)
    close(run(made, x), run(net, x), 1e-12)
    folded = bnpass.fold(randomize(made))
    assert not norms(folded)
    close(run(folded, x), run(made, x))


def test_only_skip_before_gates_last():
    net = lenet()
    assert names(bnpass.insert(net, X, skip=("gelu",))) == {"conv1.output_bn", "conv2.output_bn"}
    assert names(bnpass.insert(net, X, before=("Gelu",))) == {"fc1.output_bn"}
    plan = bnpass.insert(net, X, plan_only=True)
    assert [s.name for s in plan.sites] == ["conv1_bn", "conv2_bn", "fc1_bn"]


def test_shared_bias_of_a_layer_called_twice_is_kept_for_the_other_call():
    def forward(s, x):
        return torch.tanh(s.a(x)) + torch.softmax(s.a(x * 2), 1)

    net = Fn(lambda s, x: s.b(forward(s, x)), a=nn.Linear(5, 6), b=nn.Linear(6, 2)).double().eval()
    x = inputs((3, 5))
    made = bnpass.insert(net, x, init="preserve")
    close(run(made, x), run(net, x), 1e-12)


def test_addmm_loses_its_bias():
    net = Fn(lambda s, x: torch.tanh(torch.addmm(s.b, x, s.w)) @ s.v,
             w=nn.Parameter(torch.randn(5, 6)), b=nn.Parameter(torch.randn(6)),
             v=nn.Parameter(torch.randn(6, 2)))  # fmt: skip
    net = net.double().eval()
    x = inputs((3, 5))
    made = bnpass.insert(net, x, init="preserve")
    assert "b" not in dict(made.named_parameters())
    close(run(made, x), run(net, x), 1e-12)
    made.load_state_dict(net.state_dict())
    close(run(made, x), run(net, x), 1e-12)


# --- ways in


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(5, 6), nn.Linear(6, 2), nn.Dropout(0.5)

    def forward(self, x):
        sizes = [n + 1 for n in x.shape]
        if sizes[1] > 3:  # a symbolic trace cannot decide this
            x = self.a(x)
        return self.b(self.drop(torch.relu(x)))


def test_what_cannot_be_traced_goes_through_export():
    net = Branching().double()
    x = inputs((3, 5))
    made = bnpass.insert(net, x, init="preserve")
    assert len(norms(made)) == 1 and made.training
    close(run(made.eval(), x), run(net.eval(), x), 1e-12)
    made.train()
    assert not torch.equal(made(*x), made(*x))
    made.eval()
    more = inputs((7, 5))
    folded = bnpass.fold(randomize(made))
    close(run(folded, more), run(made, more))


def test_exported_program():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    net = randomize(net.double().eval())
    x = inputs((2, 3, 6, 6))
    program = torch.export.export(net, x)
    for model in (program, program.module()):
        folded = bnpass.fold(model)
        close(run(folded, x), run(net, x))
        assert "batch_norm" not in folded.code
        made = bnpass.insert(model, skip=("*batch*",))
        assert isinstance(made, torch.fx.GraphModule)


def test_untraceable_names_the_line():
    class Bad(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x
            return -x

    where = r"test_insert.py:\d+: if x.sum\(\) > 0"
    with pytest.raises(bnpass.errors.UnsupportedError, match=where):
        bnpass.insert(Bad(), (torch.randn(2, 3),))


def test_fold_without_shapes_asks_for_example_inputs():
    with pytest.raises(bnpass.errors.InputError, match="example_inputs"):
        bnpass.fold(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval())


def test_inputs_that_do_not_fit():
    with pytest.raises(bnpass.errors.InputError, match="example inputs"):
        bnpass.insert(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), (torch.randn(2, 5),))


def test_lazy_modules():
    with pytest.raises(bnpass.errors.InputError, match="run the module once"):
        bnpass.insert(nn.Sequential(nn.LazyLinear(3), nn.ReLU()), (torch.randn(2, 5),))


def test_inspect():
    found = bnpass.inspect(lenet(), X)
    assert found.to_dict()["batch_norms"] == 0


def test_an_exported_program_is_copied_without_a_warning_of_torch(recwarn):
    program = torch.export.export(lenet().eval(), X)
    recwarn.clear()
    bnpass.insert(program, X)
    assert [str(w.message) for w in recwarn] == []
