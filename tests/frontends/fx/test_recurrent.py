"""BatchNorm on the input's contribution of torch's recurrent modules."""

from __future__ import annotations

import copy
from collections import Counter

import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

import bnpass
from bnpass.errors import RefusedError
from bnpass.frontends.fx.recurrent import NormedRecurrent, reversal
from tests.frontends.fx.helpers import Fn, close, inputs, norms, randomize

INPUT, HIDDEN, STEPS, BATCH = 3, 4, 6, 5
KINDS = [
    (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"}), (nn.LSTM, {}), (nn.LSTM, {"proj_size": 2}),
    (nn.GRU, {}),
]  # fmt: skip
LAYOUTS = [
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bias": False},
]


class Net(nn.Module):
    """A recurrent module, and a layer on all its results."""

    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(INPUT, HIDDEN, **options)
        width = options.get("proj_size") or HIDDEN
        self.fc = nn.Linear(width * (2 if options.get("bidirectional") else 1), 2)
        self.tail = nn.Linear(width, 2)

    def forward(self, x):
        out, states = self.rnn(x)
        return self.fc(out), self.tail(states[0] if self.rnn.mode == "LSTM" else states)


def net(kind, seed=0, **options):
    torch.manual_seed(seed)
    return Net(kind, **options).double().eval()


def sequence(shape=(STEPS, BATCH), seed=1):
    return inputs((*shape, INPUT), seed=seed)


def outputs(module, *x):
    with torch.no_grad():
        return module(*x)


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_changes_until_it_is_trained(kind, options, layout):
    module, x = net(kind, **options, **layout), sequence()
    want = outputs(module, *x)
    for init, data in (("preserve", None), ("calibrated", [x])):
        normed = bnpass.insert(module, x, init=init, data=data)
        assert isinstance(normed.rnn, NormedRecurrent) and type(module.rnn) is kind
        parts = layout.get("num_layers", 1) * (2 if layout.get("bidirectional") else 1)
        assert len(norms(normed)) == parts
        close(outputs(normed, *x), want)
    assert max(m.running_var.max() for m in norms(normed)) != 1


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_parameter_trains_and_the_result_folds(kind, options, layout):
    normed, x = bnpass.insert(net(kind, **options, **layout).train(), sequence()), sequence()
    before = copy.deepcopy(normed.state_dict())
    optimizer = torch.optim.SGD(normed.parameters(), lr=0.5)
    first, second = normed(*x)
    (first.square().mean() + second.sum()).backward()
    optimizer.step()
    after = normed.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert not any("bias_ih" in name for name in before)

    randomize(normed).eval()
    plan = bnpass.fold(normed, plan_only=True)
    assert [e.how for e in plan.entries] == ["backward"] * len(norms(normed))
    folded = bnpass.fold(normed)
    assert type(folded.rnn) is kind and not norms(folded) and norms(normed)
    close(outputs(folded, *x), outputs(normed, *x))


def test_float32_rounds_once():
    normed = bnpass.insert(net(nn.LSTM).float(), [t.float() for t in sequence()])
    randomize(normed)
    norm, weight = norms(normed)[0], normed.rnn.weight_ih_l0
    folded = bnpass.fold(normed).rnn
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    assert torch.equal(folded.weight_ih_l0, (weight.double() * scale[:, None]).float())
    shift = norm.bias.double() - scale * norm.running_mean.double()
    assert torch.equal(folded.bias_ih_l0, shift.float())
    assert torch.equal(folded.weight_hh_l0, normed.rnn.weight_hh_l0)
    assert torch.equal(folded.bias_hh_l0, normed.rnn.bias_hh_l0)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_first_states_and_final_ones(kind):
    x = sequence()
    h = torch.randn(4, BATCH, HIDDEN, dtype=torch.float64)
    direct = bnpass.insert(net(kind, num_layers=2, bidirectional=True), x, init="preserve").rnn
    plain = net(kind, num_layers=2, bidirectional=True).rnn
    given = (h, 2 * h) if kind is nn.LSTM else h
    (out, got), (expected, states) = outputs(direct, *x, given), outputs(plain, *x, given)
    close(out, expected)
    close(got, states)
    lone = x[0][:, 0]
    close(outputs(direct, lone)[0], outputs(plain, lone)[0])
    close(outputs(direct, lone)[1], outputs(plain, lone)[1])


# --- packed sequences ----------------------------------------------------------------------------


LENGTHS = torch.tensor([3, 6, 1, 6, 2])


def packed_net(kind=nn.LSTM):
    def forward(s, x):
        return s.fc(s.rnn(x)[0].data)

    torch.manual_seed(0)
    rnn = kind(INPUT, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
    return Fn(forward, rnn=rnn, fc=nn.Linear(2 * HIDDEN, 2)).double().eval()


def padded(fill=0.0):
    x = sequence((BATCH, STEPS))[0].clone()
    for row, length in enumerate(LENGTHS):
        x[row, length:] = fill
    return x


def test_reversal_of_packed_steps():
    rows = [torch.arange(n) + 10 * i for i, n in enumerate((2, 4, 1))]
    packed = pack_sequence(rows, enforce_sorted=False)
    turned = pack_sequence([r.flip(0) for r in rows], enforce_sorted=False)
    index = reversal(packed.batch_sizes)
    assert torch.equal(packed.data[index], turned.data)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_packed_sequences(kind):
    module = packed_net(kind)
    x = pack_padded_sequence(padded(), LENGTHS, batch_first=True, enforce_sorted=False)
    normed = bnpass.insert(module, (x,), init="preserve")
    close(outputs(normed, x), outputs(module, x))
    out, states = outputs(normed.rnn, x)
    expected, finals = outputs(module.rnn, x)
    assert isinstance(out, PackedSequence)
    close(out.data, expected.data)
    close(states, finals)
    first = torch.randn(4, BATCH, HIDDEN, dtype=torch.float64)
    given = (first, first) if kind is nn.LSTM else first
    close(outputs(normed.rnn, x, given)[1], outputs(module.rnn, x, given)[1])
    randomize(normed)
    close(outputs(bnpass.fold(normed), x), outputs(normed, x))


class Padded(nn.Module):
    """Packs what it is given."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(INPUT, HIDDEN, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(2 * HIDDEN, 2)

    def forward(self, x, lengths):
        x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.rnn(x)[0], batch_first=True)
        return self.fc(out)


def test_padding_stays_out_of_the_statistics():
    torch.manual_seed(0)
    module = Padded().double().eval()
    steps = torch.cat([row[:n] for row, n in zip(padded(), LENGTHS, strict=True)])
    p = steps @ module.rnn.weight_ih_l0.detach().T
    for fill in (0.0, 1e6):
        x = (padded(fill), LENGTHS)
        normed = bnpass.insert(module, x, init="calibrated", data=[x])
        close(outputs(normed, *x), outputs(module, *x))
        norm = normed.rnn.bn_ih_l0
        close(norm.running_mean, p.mean(0))
        close(norm.running_var, p.var(0, correction=0))
        normed.train()(*x)
        close(norm.running_mean, p.mean(0))
        fresh = bnpass.calibrate(bnpass.insert(module, x), [x], warn=False)
        close(fresh.rnn.bn_ih_l0.running_var, p.var(0, correction=0))
        close(outputs(bnpass.fold(fresh), *x), outputs(fresh, *x))


# --- state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_an_old_state_dict_loads(bias):
    old, x = net(nn.GRU, seed=3, num_layers=2, bias=bias), sequence()
    normed = bnpass.insert(net(nn.GRU, num_layers=2, bias=bias), x)
    state = old.state_dict()
    normed.load_state_dict(state)
    assert set(state) == set(old.state_dict())
    close(outputs(normed, *x), outputs(old, *x))


def test_state_dicts_and_copies():
    normed = randomize(bnpass.insert(net(nn.LSTM, num_layers=2), sequence()))
    other = bnpass.insert(net(nn.LSTM, seed=9, num_layers=2), sequence())
    other.load_state_dict(normed.state_dict())
    x = sequence()
    close(outputs(other, *x), outputs(normed, *x), 0)
    copied = copy.deepcopy(normed)
    close(outputs(copied, *x), outputs(normed, *x), 0)
    assert copied.rnn.weight_ih_l0 is not normed.rnn.weight_ih_l0


def test_dropout_between_layers_follows_the_mode():
    normed = bnpass.insert(net(nn.LSTM, num_layers=2, dropout=0.5), sequence())
    x = sequence()
    close(outputs(normed, *x), outputs(normed, *x), 0)
    normed.train()
    torch.manual_seed(0)
    first = outputs(normed, *x)[0]
    assert not torch.equal(first, outputs(normed, *x)[0])
    assert bnpass.fold(normed.eval()).rnn.dropout == 0.5


# --- plans ---------------------------------------------------------------------------------------


def test_the_plan():
    module, x = net(nn.LSTM, num_layers=2), sequence()
    plan = bnpass.insert(module, x, plan_only=True)
    assert [s.name for s in plan.sites] == ["rnn.bn_ih_l0", "rnn.bn_ih_l1"]
    site = plan.sites[0]
    assert site.nonlinearities == site.absorbers == site.dropped == ("rnn",)
    assert (site.axis, site.channels) == (2, 4 * HIDDEN)
    assert plan.dropped == 2 and plan.nonlinearities == 1 and not plan.skipped
    assert set(dict(bnpass.insert(module, x).named_modules())) >= {s.name for s in plan.sites}


@pytest.mark.parametrize(
    "policy",
    [{"skip": ("rnn",)}, {"skip": ("LSTM",)}, {"before": ("relu",)}, {"only": ("fc*",)}],
)
def test_policies(policy):
    plan = bnpass.insert(net(nn.LSTM), sequence(), plan_only=True, **policy)
    assert not plan.sites and [(s.node, s.kind) for s in plan.skipped] == [("rnn", "LSTM")]
    assert "asked" in plan.skipped[0].reason
    assert type(bnpass.insert(net(nn.LSTM), sequence(), **policy).rnn) is nn.LSTM


@pytest.mark.parametrize("policy", [{"only": ("rnn",)}, {"only": ("LSTM",)}, {"before": ("lstm",)}])
def test_policies_that_ask_for_it(policy):
    assert len(bnpass.insert(net(nn.LSTM), sequence(), plan_only=True, **policy).sites) == 1


def test_the_last_one_is_left_alone():
    module = Fn(lambda s, x: s.rnn(x)[0], rnn=nn.GRU(INPUT, HIDDEN)).double()
    plan = bnpass.insert(module, sequence(), plan_only=True)
    assert not plan.sites and "last nonlinearity" in plan.skipped[0].reason
    assert bnpass.insert(module, sequence(), plan_only=True, last=True).sites


def test_options():
    normed = bnpass.insert(net(nn.GRU), sequence(), eps=0.1, momentum=0.3, sync=True)
    norm = norms(normed)[0]
    assert (norm.eps, norm.momentum, type(norm)) == (0.1, 0.3, nn.SyncBatchNorm)
    close(outputs(bnpass.fold(normed), *sequence()), outputs(normed, *sequence()))


def test_a_second_insertion_changes_nothing():
    normed, x = bnpass.insert(net(nn.LSTM), sequence()), sequence()
    again = bnpass.insert(normed, x)
    assert list(again.state_dict()) == list(normed.state_dict())
    close(outputs(again, *x), outputs(normed, *x), 0)
    plan = bnpass.insert(normed, x, plan_only=True)
    assert not plan.sites and "already normalised" in plan.skipped[0].reason


def _twice(s, x):
    return s.fc(s.rnn(s.rnn(x)[0])[0])


def _tied():
    module = Fn(lambda s, x: s.fc(s.other(s.rnn(x)[0])[0]), rnn=nn.GRU(3, 3), other=nn.GRU(3, 3),
                fc=nn.Linear(3, 2))  # fmt: skip
    module.other.weight_hh_l0 = module.rnn.weight_hh_l0
    return module


def _read_elsewhere():
    return Fn(lambda s, x: s.fc(s.rnn(x)[0]) * s.rnn.bias_hh_l0.sum(), rnn=nn.GRU(3, 3),
              fc=nn.Linear(3, 2))  # fmt: skip


def _hooked():
    module = Fn(lambda s, x: s.fc(s.rnn(x)[0]), rnn=nn.GRU(3, 3), fc=nn.Linear(3, 2))
    module.rnn.register_forward_hook(lambda *_: None)
    return module


def _parametrized():
    module = Fn(lambda s, x: s.fc(s.rnn(x)[0]), rnn=nn.GRU(3, 3), fc=nn.Linear(3, 2))
    weight_norm(module.rnn, "weight_hh_l0")
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Fn(_twice, rnn=nn.GRU(3, 3), fc=nn.Linear(3, 2)), "more than once"),
        (_tied(), "other layers use its weights"),
        (_read_elsewhere(), "other layers use its weights"),
        (_hooked(), "hooks"),
        (_parametrized(), "parametrized"),
    ],
    ids=["twice", "tied", "read elsewhere", "hooked", "parametrized"],
)
def test_skipped_with_the_reason(module, reason):
    plan = bnpass.insert(module.double(), sequence(), plan_only=True)
    assert not plan.sites and {s.node for s in plan.skipped} >= {"rnn"}
    assert all(reason in s.reason for s in plan.skipped)
    assert type(bnpass.insert(module, sequence()).rnn) is type(module.rnn)


def test_an_input_as_wide_as_the_gates_is_no_contribution():
    """In ONNX a layer whose input is that wide counts as split already."""
    module = Fn(lambda s, x: s.fc(s.rnn(s.up(x))[0]), up=nn.Linear(INPUT, HIDDEN),
                rnn=nn.RNN(HIDDEN, HIDDEN), fc=nn.Linear(HIDDEN, 2)).double()  # fmt: skip
    plan = bnpass.insert(module, sequence(), plan_only=True)
    assert [s.name for s in plan.sites] == ["rnn.bn_ih_l0"] and plan.nonlinearities == 1


def test_beside_other_nonlinearities():
    module = Fn(lambda s, x: s.fc(s.rnn(torch.relu(s.up(x)))[0]), up=nn.Linear(INPUT, 7),
                rnn=nn.LSTM(7, HIDDEN), fc=nn.Linear(HIDDEN, 2)).double().eval()  # fmt: skip
    x = sequence()
    loader = iter([x, sequence(seed=2)])  # can be walked over once
    normed = bnpass.insert(module, x, init="calibrated", data=loader)
    assert len(norms(normed)) == 2
    close(outputs(normed, *x), outputs(module, *x))
    randomize(normed).eval()
    close(outputs(bnpass.fold(normed, x), *x), outputs(normed, *x))
    assert not norms(bnpass.fold(normed, x))


# --- fold ----------------------------------------------------------------------------------------


def test_training_mode_is_refused():
    normed = bnpass.insert(net(nn.LSTM), sequence())
    with pytest.raises(RefusedError, match="train mode"):
        bnpass.fold(normed.train())
    normed.eval().rnn.bn_ih_l0.train()
    plan = bnpass.fold(normed, plan_only=True)
    assert [e.how for e in plan.refused] == [""] and "batch statistics" in plan.refused[0].reason
    assert isinstance(bnpass.fold(normed).rnn, NormedRecurrent)
    assert type(bnpass.fold(normed, training_mode="inference").rnn) is nn.LSTM


def test_one_that_cannot_fold_keeps_the_others():
    normed = bnpass.insert(net(nn.LSTM, num_layers=2).float(), [t.float() for t in sequence()])
    with torch.no_grad():
        normed.rnn.bn_ih_l1.weight.fill_(1e38)
        normed.rnn.bn_ih_l1.running_var.zero_()
    plan = bnpass.fold(normed, plan_only=True)
    assert len(plan.refused) == 2 and all("finite" in e.reason for e in plan.refused)
    assert isinstance(bnpass.fold(normed).rnn, NormedRecurrent)


def test_fold_policies():
    normed = bnpass.insert(net(nn.LSTM), sequence())
    assert isinstance(bnpass.fold(normed, skip=("rnn*",)).rnn, NormedRecurrent)
    assert type(bnpass.fold(normed, only=("rnn*",)).rnn) is nn.LSTM


def test_folding_draws_no_random_numbers():
    normed = bnpass.insert(net(nn.LSTM), sequence())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    bnpass.fold(normed)
    assert torch.equal(torch.get_rng_state(), before)


def test_export(tmp_path):
    x = tuple(t.float() for t in sequence((BATCH, STEPS)))
    normed = bnpass.insert(net(nn.GRU, batch_first=True).float(), x)
    path = bnpass.export(randomize(normed), x, tmp_path / "normed.onnx")  # verified before written
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert kinds["BatchNormalization"] == 1 and kinds["GRU"]


# --- GPU -----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.filterwarnings("error")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_on_a_gpu(kind, options, autocast):
    layout = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    module = net(kind, **options, **layout).float().cuda()
    x = tuple(t.float().cuda() for t in sequence((BATCH, STEPS)))
    packed = pack_padded_sequence(x[0], LENGTHS, batch_first=True, enforce_sorted=False)
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        normed = bnpass.insert(module, x, init="calibrated", data=[x])
        close(outputs(normed, *x), outputs(module, *x), 1e-5)
        close(outputs(normed.rnn, packed)[0].data, outputs(module.rnn, packed)[0].data, 1e-5)
        before = copy.deepcopy(normed.state_dict())
        optimizer = torch.optim.SGD(normed.train().parameters(), lr=0.5)
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            first, second = normed(*x)
            loss = first.float().square().mean() + second.float().sum()
            loss = loss + normed.rnn(packed)[0].data.float().square().mean()
        loss.backward()
        optimizer.step()
        after = normed.state_dict()
        assert all(not torch.equal(after[name], before[name]) for name in before)
        folded = bnpass.fold(normed.eval())
        assert all(p.is_cuda for p in folded.parameters())
        close(outputs(folded, *x), outputs(normed, *x), 1e-5)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def test_inspect_lists_the_norms_inside() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(5, 7, batch_first=True, bidirectional=True)
            self.out = nn.Linear(14, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.rnn(x)[0])

    module = bnpass.insert(Tagger(), (torch.zeros(2, 4, 5),))
    before = [name for name, _ in module.named_modules()]
    found = bnpass.inspect(module)
    names = ["rnn.bn_ih_l0", "rnn.bn_ih_l0_reverse"]
    assert found.norms == 2
    assert [e.node for e in found.folds.folded] == names
    assert [f.node for f in found.findings if "never trained" in f.message] == names
    module.rnn.get_submodule("bn_ih_l0").running_var[3] = 0
    messages = {f.message: f.channels for f in bnpass.inspect(module).findings}
    assert messages["the variance is zero: the channel never varied"] == 1
    assert [name for name, _ in module.named_modules()] == before
