"""The module that comes back is the module that was given: its class, hooks, modes and sizes."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import bnpass
from bnpass.errors import BnpassError, UnsupportedError
from bnpass.frontends.fx import fx_insert
from tests import processes
from tests.frontends.fx.helpers import Fn, close, inputs, norms, prepared, randomize, run


class Block(nn.Module):
    """Conv, function, conv, residual: anchors of every kind."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.skip, self.act = nn.Conv2d(3, 6, 1), nn.ReLU()

    def helper(self):
        return "still here"

    def forward(self, x, scale=None):
        h = self.b(torch.tanh(self.a(x)))
        h = self.act(h + self.skip(x))
        return h if scale is None else h * scale


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.drop = Block(), nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        h = self.drop(self.block(x)).mean((2, 3))
        if self.training:  # drop path
            h = h * torch.empty(len(h), 1, dtype=h.dtype).bernoulli_(0.5)
        return self.head(h) / x.shape[0]


X = inputs((4, 3, 8, 8))


def net():
    torch.manual_seed(0)
    return Net().double().eval()


def still(module):
    module.train()
    for m in norms(module):
        m.eval()
    return module


def test_class_methods_and_paths_are_those_of_the_module():
    module = net()
    made = bnpass.insert(module, X, init="preserve")
    assert type(made) is Net and type(made.block) is Block
    assert made.block.helper() == "still here"
    assert len(norms(made)) == 3
    more = inputs((7, 3, 10, 10))
    for x in (X, more):
        close(run(made, x), run(module, x), 1e-12)
    made.load_state_dict(module.state_dict())
    close(run(made, X), run(module, X), 1e-12)
    folded = bnpass.fold(randomize(made))
    assert type(folded) is Net and not norms(folded)
    assert folded.state_dict().keys() == module.state_dict().keys()
    for x in (X, more):
        close(run(folded, x), run(made, x))


def test_what_follows_the_mode_is_alive():
    made = still(bnpass.insert(net(), X, init="preserve"))
    assert not torch.equal(made(*X), made(*X))
    made.eval()
    assert torch.equal(made(*X), made(*X))


def test_sites_on_the_value_of_a_sum_stand_in_front_of_its_only_reader():
    made = bnpass.insert(net(), X, init="preserve", sums="value")
    names = {n for n, m in made.named_modules() if m in norms(made)}
    assert names == {"block.a.output_bn", "block.act.input_bn"}
    close(run(made, X), run(net(), X), 1e-12)
    assert not norms(bnpass.fold(randomize(made)))


class Functional(nn.Module):
    """A site in the middle of a forward, with flags that follow the mode."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6))
        self.o = nn.Linear(6, 2)

    def forward(self, x, mask=None):
        h = torch.tanh(x @ self.w + self.b)
        if mask is not None:
            h = h * mask
        h = F.dropout(h, 0.5, self.training) / (2.0 if self.training else 1.0)
        return self.o(h)


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = Functional(), nn.Linear(2, 2)

    def forward(self, x):
        return {"y": self.last(self.inner(x)), "n": x.shape[0]}


def test_only_the_module_with_a_site_inside_becomes_a_graph():
    module, x = Around().double().eval(), inputs((3, 5))
    plan = bnpass.insert(module, x, plan_only=True)
    assert any("inner" in note for note in plan.notes)
    made = bnpass.insert(module, x, init="preserve")
    assert type(made) is Around and isinstance(made.inner, fx.GraphModule)
    assert type(made.last) is nn.Linear and len(norms(made)) == 1
    for y in (x, inputs((8, 5))):
        close(made(*y)["y"], module(*y)["y"], 1e-12)
    still(made), module.train()
    torch.manual_seed(1)
    got = made(*x)["y"]
    torch.manual_seed(1)
    close(got, module(*x)["y"], 1e-12)
    with pytest.raises(AssertionError, match="mask is fixed"):
        made.inner(x[0], torch.ones(6).double())
    folded = bnpass.fold(randomize(made).eval())
    close(folded(*x)["y"], made(*x)["y"])
    assert not norms(folded)


def no_grad(h):
    with torch.no_grad():
        return h + h.detach() * 0


def remember(s, h):
    s.seen = 3
    return h


NOT_AS_A_GRAPH = {
    "training": lambda s, h: h * torch.rand_like(h) if s.training else h,
    "under no_grad": lambda _, h: no_grad(h),
    "assigns self.seen": remember,
    "h.shape": lambda s, h: h if h.shape[0] > 2 else -h,
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_AS_A_GRAPH)
def test_what_a_graph_would_lose_is_skipped_with_the_reason(name):
    rest = NOT_AS_A_GRAPH[name]
    module = Fn(lambda s, x: s.o(rest(s, torch.tanh(x @ s.w))), w=nn.Parameter(torch.randn(5, 6)),
                o=nn.Linear(6, 2)).double().eval()  # fmt: skip
    x = inputs((3, 5))
    plan = bnpass.insert(module, x, plan_only=True)
    assert not plan.sites and len(plan.skipped) == 1
    assert any(word in plan.skipped[0].reason for word in (name, "cannot be written as a graph"))
    made = bnpass.insert(module, x)
    assert type(made) is Fn
    close(run(made, x), run(module, x), 0)


def test_pickle_deepcopy_and_old_hooks():
    seen = []
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
    module[0].register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    made = randomize(bnpass.insert(module.eval(), X))
    seen.clear()
    run(made, X)
    close(seen[-1], F.conv2d(X[0], module[0].weight), 1e-12)  # what the layer itself returns
    close(run(copy.deepcopy(made), X), run(made, X), 0)
    module[0]._forward_hooks.clear()
    made = randomize(bnpass.insert(module, X))
    again = pickle.loads(pickle.dumps(made))
    assert len(norms(again)) == 1
    close(run(again, X), run(made, X), 0)
    assert not norms(bnpass.fold(again))


def test_a_folded_module_needs_no_bnpass(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    folded = bnpass.fold(bnpass.insert(module, (X[0].float(),)).eval())
    torch.save(folded, tmp_path / "m.pt")
    code = (
        "import sys; sys.modules['bnpass'] = None; import torch;"
        f"m = torch.load({str(tmp_path / 'm.pt')!r}, weights_only=False);"
        "m(torch.zeros(1, 3, 8, 8))"
    )
    processes.run([sys.executable, "-c", code], check=True)


class NormAct(nn.BatchNorm2d):
    """A norm with an activation of its own, as timm has it."""

    def __init__(self, n):
        super().__init__(n)
        self.act = nn.SiLU()

    def forward(self, x):
        training = self.training or self.running_mean is None
        if self.training:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training)
        return self.act(x)


class Same(nn.Conv2d):
    """A convolution with a forward of its own: its padding depends on the input."""

    def forward(self, x):
        pad = 1 if x.shape[-1] % 2 == 0 else 2
        return F.conv2d(F.pad(x, (pad, pad, pad, pad)), self.weight, self.bias)


def test_what_remains_of_a_norm_stays():
    module = prepared(nn.Sequential(Same(3, 4, 3, bias=False), NormAct(4), nn.Conv2d(4, 2, 1)))
    before = module[1].num_batches_tracked.clone()
    folded = bnpass.fold(module, X)
    for x in (X, inputs((2, 3, 9, 9))):
        close(run(folded, x), run(module, x))
    assert type(folded) is type(folded[1]) is nn.Sequential and type(folded[0]) is Same
    assert set(folded.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert torch.equal(module[1].num_batches_tracked, before)


def test_norms_whose_hooks_observe_leave_an_identity_with_the_hooks():
    seen = []
    module = prepared(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    module[1].register_forward_hook(lambda m, a, out: seen.append(out.shape))
    folded = bnpass.fold(module, X)
    seen.clear()
    close(run(folded, X), run(module, X))
    assert type(folded[1]) is nn.Identity and len(seen) == 2


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    shift: torch.Tensor


def test_dataclasses_dicts_and_keywords():
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.o = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, batch, *, flags=None):
            h = torch.relu(self.l(batch.x) + batch.shift)
            return Batch(self.o(h), h if flags is None else h * flags["k"])

    module = Takes().double().eval()
    batch = Batch(*inputs((3, 5), (3, 6)))
    given = {"batch": batch, "flags": {"k": torch.tensor(2.0).double()}}
    made = bnpass.insert(module, given, init="preserve", last=True)
    assert len(norms(made)) == 1
    got, want = made(**given), module(**given)
    close(got.x, want.x, 1e-12)
    close(got.shift, want.shift, 1e-12)


def test_a_tensor_alone_is_the_only_input():
    assert norms(bnpass.insert(net(), X[0]))


def test_one_module_called_twice():
    """Its calls get norms of their own: the forward that calls it becomes a graph."""
    module = Fn(lambda s, x: s.o(torch.tanh(s.l(torch.tanh(s.l(x))))), l=nn.Linear(5, 5),
                o=nn.Linear(5, 2)).double().eval()  # fmt: skip
    x = inputs((3, 5))
    made = bnpass.insert(module, x, init="preserve")
    assert len(norms(made)) == 2 and isinstance(made, fx.GraphModule)
    close(run(made, x), run(module, x), 1e-12)


def test_a_call_of_forward_itself_passes_no_hook_by():
    module = Fn(lambda s, x: s.o(torch.tanh(s.l.forward(x))), l=nn.Linear(5, 5),
                o=nn.Linear(5, 2)).double().eval()  # fmt: skip
    x = inputs((3, 5))
    made = bnpass.insert(module, x, init="preserve")
    close(run(made, x), run(module, x), 1e-12)
    assert all(not m._forward_hooks for m in made.modules())


def test_frozen_layers_get_frozen_norms():
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    module.train()
    module[0].requires_grad_(False).eval()
    made = bnpass.insert(module, (torch.randn(4, 5),))
    first, second = norms(made)
    assert not first.training and not first.weight.requires_grad
    assert second.training and second.weight.requires_grad


def test_under_no_grad_and_autocast_norms_are_trainable_and_of_the_layers_type():
    module, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(4, 5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        made = bnpass.insert(module, x)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in made.parameters())


def test_on_meta_sites_are_found_without_data():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
        made = bnpass.insert(module, torch.randn(4, 5))
    assert len(norms(made)) == 1
    assert all(p.is_meta for p in made.parameters())


def test_numbers_taken_from_data_are_refused_by_the_line():
    class Bad(nn.Module):
        def forward(self, x):
            return x * 2 if x.max().item() > 0 else x

    with pytest.raises(UnsupportedError, match=r"test_modules.py:\d+: return x \* 2 if x.max"):
        bnpass.insert(Bad(), torch.randn(2, 3))


def test_a_value_that_forward_keeps_is_not_normalised():
    module = Fn(lambda s, x: s.o(torch.tanh(keep(s, s.l(x)))), l=nn.Linear(5, 6),
                o=nn.Linear(6, 2)).eval()  # fmt: skip
    plan = bnpass.insert(module, torch.randn(3, 5), plan_only=True)
    assert not plan.sites and "output" in plan.skipped[0].reason


def keep(s, h):
    s.features = h
    return h


def test_the_module_given_is_untouched():
    module = net().train()
    module.seen = []
    module.register_forward_hook(lambda m, a, out: None)
    state = copy.deepcopy(module.state_dict())
    attributes = {name: set(vars(m)) for name, m in module.named_modules()}
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        bnpass.insert(module, X)
        bnpass.fold(module.eval(), X)
        assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert attributes == {name: set(vars(m)) for name, m in module.named_modules()}


@pytest.mark.parametrize("bad", [torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), object()])
def test_what_cannot_be_edited_is_refused(bad):
    with pytest.raises(BnpassError):
        fx_insert(bad, (torch.zeros(1, 2),))


class BySize(nn.Module):
    """Large batches go without the norm."""

    def __init__(self):
        super().__init__()
        self.l, self.n, self.o = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.l(x)
        return self.o(torch.tanh(h if x.shape[0] > 6 else self.n(h)))


def test_a_norm_that_a_forward_calls_by_the_size_stays_with_the_line():
    module = prepared(BySize())
    plan = bnpass.fold(module, inputs((4, 8)), plan_only=True)
    assert [e.node for e in plan.refused] == ["n"] and not plan.folded
    assert "a batch 3 times as large" in plan.refused[0].reason
    assert "tanh(h if x.shape[0] > 6 else self.n(h))" in plan.refused[0].reason
    folded = bnpass.fold(module, inputs((4, 8)))
    for n in (4, 9):
        close(run(folded, inputs((n, 8))), run(module, inputs((n, 8))))


class Caching(nn.Module):
    """Keeps what it has computed from a parameter in a dict of its own, as LeViT does."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(8))
        self.l, self.o, self.cache, self.seen = nn.Linear(8, 8), nn.Linear(8, 2), {}, []

    def forward(self, x):
        if self.training or "bias" not in self.cache:
            self.cache["bias"] = self.bias * 2
            self.seen.append(self.cache["bias"])
        return self.o(torch.tanh(self.l(x)) + self.cache["bias"])


def test_caches_that_a_forward_fills_are_left_as_they_were():
    torch.manual_seed(0)
    module = Caching().double().eval()
    inserted = bnpass.insert(module, inputs((4, 8)))
    assert isinstance(inserted, Caching) and len(norms(inserted)) == 1
    for made in (module, inserted):
        assert made.cache == {} and made.seen == []
    folded = bnpass.fold(inserted, inputs((4, 8)))
    assert folded.cache == {} and folded.seen == []
    close(run(folded, inputs((4, 8))), run(inserted, inputs((4, 8))))


class Noting(nn.Module):
    """Its site lies inside of its own forward, which also notes what it sees."""

    def __init__(self, kind):
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.randn(6, 8)), nn.Linear(6, 2)
        self.kind, self.seen = kind, kind()

    def forward(self, x):
        if self.kind is list:
            self.seen.append(1)
        elif self.kind is set:
            self.seen.add(len(self.seen))
        else:
            self.seen["last"] = x
        return self.out(F.relu(F.linear(x, self.weight)))


@pytest.mark.parametrize("kind", [list, set, dict])
def test_what_a_forward_notes_is_not_lost_without_a_word(kind):
    module = Noting(kind).double()
    plan = bnpass.insert(module, inputs((4, 8)), plan_only=True)
    assert not plan.sites and "changes what self.seen holds" in plan.skipped[0].reason
    made = bnpass.insert(module, inputs((4, 8)))
    made(*inputs((4, 8)))
    assert made.seen and not module.seen
