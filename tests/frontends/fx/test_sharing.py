"""Modules called twice, tied weights, attributes that others read, writes in place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import bnpass
from tests.frontends.fx.helpers import Fn, check_fold, close, inputs, norms, prepared, run

X = inputs((2, 3, 8, 8))


def conv(n=3, m=3, **options):
    return nn.Conv2d(n, m, 3, padding=1, **options)


def test_module_called_twice_with_different_norms():
    net = Fn(lambda s, x: s.b1(s.c(x)) + s.b2(s.c(x + 1)), c=conv(), b1=nn.BatchNorm2d(3),
             b2=nn.BatchNorm2d(3))  # fmt: skip
    folded = check_fold(prepared(net), X)
    assert {"c", "c_2"} <= {n for n, _ in folded.named_modules()}


def test_module_called_twice_one_of_them_without_a_norm():
    net = Fn(lambda s, x: s.c(x) * torch.tanh(s.b(s.c(x + 1))), c=conv(), b=nn.BatchNorm2d(3))
    net = prepared(net)
    before = net.c.weight.clone()
    folded = check_fold(net, X)
    assert torch.equal(folded.c.weight, before)


def test_module_called_twice_of_which_one_call_changes_its_bias_only():
    net = Fn(lambda s, x: s.b(s.c(x)) * torch.tanh(s.c(x + 1)), c=nn.Conv2d(3, 4, 3),
             b=nn.BatchNorm2d(4))  # fmt: skip
    folded = check_fold(prepared(net), X)
    assert torch.equal(folded.c_2.weight, net.c.weight)
    assert not torch.equal(folded.c_2.bias, net.c.bias)


def test_block_called_twice_shares_what_is_equal():
    block = nn.Sequential(conv(), nn.BatchNorm2d(3), nn.Tanh())
    folded = check_fold(prepared(Fn(lambda s, x: s.b(s.b(x)), b=block)), X)
    assert sum(isinstance(m, nn.Conv2d) for m in folded.modules()) == 1


def test_tied_parameter_of_two_modules():
    a, b = conv(), conv()
    b.weight = a.weight
    net = Fn(lambda s, x: s.n(s.a(x)) + torch.tanh(s.b(x)), a=a, b=b, n=nn.BatchNorm2d(3))
    check_fold(prepared(net), X)


def test_functional_weight_used_twice():
    w = nn.Parameter(torch.randn(3, 3, 3, 3))
    net = Fn(lambda s, x: s.n(F.conv2d(x, s.w)) + torch.tanh(F.conv2d(x, s.w)), w=w,
             n=nn.BatchNorm2d(3))  # fmt: skip
    folded = check_fold(prepared(net), X)
    assert torch.equal(folded.w, net.w)


def test_weight_of_a_module_read_by_a_function():
    net = Fn(lambda s, x: s.n(s.c(x)) + F.conv2d(x, s.c.weight, padding=1), c=conv(),
             n=nn.BatchNorm2d(3))  # fmt: skip
    check_fold(prepared(net), X)


def test_weight_read_twice_by_one_operator():
    w = nn.Parameter(torch.randn(3, 3))
    net = Fn(lambda s, x: s.n(x @ s.w) @ s.w, w=w, n=nn.BatchNorm1d(3))
    check_fold(prepared(net), inputs((4, 3)))


def test_norm_called_twice():
    net = Fn(lambda s, x: torch.tanh(s.n(s.a(x))) + s.n(s.b(x)), a=conv(), b=conv(),
             n=nn.BatchNorm2d(3))  # fmt: skip
    check_fold(prepared(net), X)


@pytest.mark.parametrize("bake", [
    parametrizations.weight_norm, parametrizations.spectral_norm, weight_norm, spectral_norm,
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrized_weight_is_baked_by_fold_and_kept_by_insert(bake):
    net = nn.Sequential(bake(conv()), nn.ReLU(), conv(3, 2)).double()
    net(X[0])  # spectral_norm takes a step of its power iteration
    net.eval()
    made = bnpass.insert(net, X, init="preserve")
    assert len(norms(made)) == 1 and made.training is False
    close(run(made, X), run(net, X))
    keys = set(made.state_dict()) - {k for k in made.state_dict() if "output_bn" in k}
    assert keys == set(net.state_dict()) - {"0.bias"}
    folded = check_fold(prepared(made), X)
    assert {k for k in folded.state_dict() if k.startswith("0.")} == {"0.weight", "0.bias"}


# --- in place


def test_relu_in_place_seen_by_a_later_reader():
    def forward(s, x):
        y = s.n(s.c(x))
        z = torch.relu_(y)
        return y + 2 * z

    check_fold(prepared(Fn(forward, c=conv(), n=nn.BatchNorm2d(3))), X)


def test_write_through_a_view():
    def forward(s, x):
        y = s.n(s.c(x))
        y[:, :1].relu_()
        return torch.tanh(y)

    check_fold(prepared(Fn(forward, c=conv(), n=nn.BatchNorm2d(3))), X)


def test_norm_behind_a_write_through_a_view():
    def forward(s, x):
        y = s.c(x)
        y[:, :1].relu_()
        return s.n(y)

    check_fold(prepared(Fn(forward, c=conv(), n=nn.BatchNorm2d(3))), X, left=1)


def test_view_read_after_its_base_was_written():
    def forward(s, x):
        y = s.c(x)
        view = y.flatten(2)
        y.relu_()
        return s.n(view)

    check_fold(prepared(Fn(forward, c=conv(), n=nn.BatchNorm1d(3))), X, left=1)


def test_assignment_to_a_part():
    def forward(s, x):
        y = s.c(x)
        y[:, 0] = 1.0
        return s.n(y)

    net = prepared(Fn(forward, c=conv(), n=nn.BatchNorm2d(3)))
    check_fold(net, X, left=1)
    assert len(bnpass.fold(net, X, plan_only=True).refused) == 1


def test_removed_norm_in_front_of_a_write():
    """Without the norm the write would go into a value that another node reads."""

    def forward(s, x):
        y = s.c(x)
        return s.d(s.n(y).relu_()) + torch.tanh(y)

    net = Fn(forward, c=conv(), d=conv(3, 3), n=nn.BatchNorm2d(3))
    net = prepared(net, positive=True)
    with torch.no_grad():
        net.n.bias.copy_(net.n.weight * net.n.running_mean / (net.n.running_var + 1e-5).sqrt())
    check_fold(net, X, left=len(norms(bnpass.fold(net, X))))


def test_removed_operator_was_the_copy_that_a_later_write_does_not_reach():
    def forward(s, x):
        y = s.c(x)
        return y * 1 + y.flatten(2).relu_().view(-1, 3, 8, 8)

    check_fold(prepared(Fn(forward, c=conv())), X)


def test_in_place_add_of_a_residual():
    def forward(s, x):
        y = s.n1(s.c1(x))
        y += s.n2(s.c2(x))
        return F.relu(y, inplace=True)

    net = Fn(forward, c1=conv(), c2=conv(), n1=nn.BatchNorm2d(3), n2=nn.BatchNorm2d(3))
    check_fold(prepared(net), X)


def test_relu_in_place_on_the_input_leaves_it_as_torch_does():
    net = prepared(nn.Sequential(nn.ReLU(inplace=True), conv(), nn.BatchNorm2d(3)))
    folded = check_fold(net, X)
    one, other = X[0].clone(), X[0].clone()
    net(one), folded(other)
    assert torch.equal(one, other)


# --- what is kept


def test_hooks_dtype_grad_and_paths_are_kept():
    seen = []
    net = nn.Sequential(nn.Sequential(conv(), nn.BatchNorm2d(3)), conv()).double().eval()
    net[0][0].weight.requires_grad_(False)
    net[1].register_forward_hook(lambda *args: seen.append(1))
    net.register_buffer("unused", torch.ones(2))
    folded = check_fold(net, X)
    assert seen and not folded.get_parameter("0.0.weight").requires_grad
    assert folded.get_parameter("0.0.weight").dtype == torch.float64
    assert set(folded.state_dict()) == {"0.0.weight", "0.0.bias", "1.weight", "1.bias", "unused"}


def test_module_whose_hook_changes_its_output_is_left_alone():
    net = nn.Sequential(conv(), nn.BatchNorm2d(3)).double().eval()
    net[0].register_forward_hook(lambda module, args, out: torch.tanh(out))
    check_fold(prepared(net), X, left=1)


def test_conv_with_an_observing_hook_takes_a_norm_in():
    seen = []
    net = nn.Sequential(conv(), nn.BatchNorm2d(3)).double().eval()
    net[0].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    check_fold(prepared(net), X, left=0)
    assert seen


def test_train_mode_is_refused():
    net = nn.Sequential(conv(), nn.BatchNorm2d(3))
    with pytest.raises(bnpass.errors.RefusedError, match="eval"):
        bnpass.fold(net, (torch.randn(2, 3, 8, 8),))
    assert not norms(bnpass.fold(net, (torch.randn(2, 3, 8, 8),), training_mode="inference"))


def test_norm_in_train_mode_inside_of_a_network_in_eval_mode_stays():
    net = prepared(nn.Sequential(conv(), nn.BatchNorm2d(3)))
    net[1].train()
    assert len(norms(bnpass.fold(net, X))) == 1


@pytest.mark.parametrize("tied", [False, True])
def test_clones_may_not_make_the_module_grow_without_bound(tied):
    linears = [nn.Linear(400, 400) for _ in range(6)]
    for linear in linears[1:]:
        linear.weight = linears[0].weight
    norms_ = nn.ModuleList(nn.BatchNorm1d(400) for _ in range(6))

    def forward(s, x):
        return sum(b((s.ls[i] if tied else s.ls[0])(x)).tanh() for i, b in enumerate(s.bs))

    net = prepared(Fn(forward, ls=nn.ModuleList(linears), bs=norms_)).float()
    x = (torch.randn(3, 400),)
    some = bnpass.fold(net, x)
    left = len(norms(some))
    assert 0 < left < 6
    close(run(some, x), run(net, x), 1e-4)
    plan = bnpass.fold(net, x, plan_only=True)
    assert sum(e.kind == "BatchNormalization" for e in plan.folded) == 6 - left
    stay = [entry for entry in plan.refused if entry.kind == "BatchNormalization"]
    assert len(stay) == left and all("max_growth=" in entry.reason for entry in stay)
    folded = bnpass.fold(net, x, max_growth=7.0)
    assert not norms(folded)
    close(run(folded, x), run(net, x), 1e-4)
    assert len(norms(bnpass.fold(net, x, skip=("bs.[234]",)))) == 3


def test_one_copy_for_all_that_want_the_same():
    """Six layers read one weight behind one norm: one new weight, still one."""
    linears = [nn.Linear(40, 40) for _ in range(6)]
    for linear in linears[1:]:
        linear.weight = linears[0].weight

    def forward(s, x):
        y = s.norm(x.relu())
        return sum(layer(y).tanh() for layer in s.ls)

    net = prepared(Fn(forward, ls=nn.ModuleList(linears), norm=nn.BatchNorm1d(40))).float()
    x = (torch.randn(3, 40),)
    folded = bnpass.fold(net, x, max_growth=1.0)
    assert not norms(folded)
    assert len({id(layer.weight) for layer in folded.ls}) == 1
    close(run(folded, x), run(net, x), 1e-4)


def test_functions_that_read_one_weight_behind_one_norm():
    def forward(s, x):
        y = s.norm(x.relu())
        return sum(nn.functional.linear(y, s.w, s.b).tanh() for _ in range(4))

    net = prepared(Fn(forward, w=nn.Parameter(torch.randn(6, 5)), b=nn.Parameter(torch.zeros(6)),
                      norm=nn.BatchNorm1d(5)))
    x = (torch.randn(3, 5).double(),)
    folded = bnpass.fold(net, x)
    assert not norms(folded)
    assert sum(p.numel() for p in folded.parameters()) == 36
    close(run(folded, x), run(net, x), 1e-9)


@pytest.mark.parametrize("tied", [False, True])
def test_no_norm_that_only_growth_would_fold(tied):
    linears = [nn.Linear(400, 400) for _ in range(6)]
    for linear in linears[1:]:
        linear.weight = linears[0].weight

    def forward(s, x):
        for i in range(6):
            x = (s.ls[i] if tied else s.ls[0])(x).relu()
        return s.head(x)

    net = Fn(forward, ls=nn.ModuleList(linears), head=nn.Linear(400, 2)).eval()
    x = (torch.randn(3, 400),)
    plan = bnpass.insert(net, x, plan_only=True)
    assert 0 < len(plan.sites) < 6
    grown = [skip for skip in plan.skipped if "max_growth=" in skip.reason]
    assert len(grown) == 6 - len(plan.sites)
    assert len(bnpass.insert(net, x, plan_only=True, max_growth=9.0).sites) == 6
    made = bnpass.insert(net, x)
    assert not norms(bnpass.fold(made.eval(), x))


def test_overflow_leaves_the_norm():
    net = nn.Sequential(conv(), nn.BatchNorm2d(3)).half().eval()
    with torch.no_grad():
        net[1].running_var.fill_(0.0)
        net[1].weight.fill_(6e4)
        net[0].weight.fill_(60.0)
    plan = bnpass.fold(net.float(), (X[0].float(),), plan_only=True)
    assert not plan.refused
    folded = bnpass.fold(net.half(), (X[0].half(),))
    assert len(norms(folded)) == 1
