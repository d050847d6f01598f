from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from bnpass.errors import UsageError
from bnpass.training import logits_module, value_module
from bnpass.training.outputs import split_ending
from tests.training.nets import mlp


class Ends(nn.Module):
    def __init__(self, ending) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 4)
        self.ending = ending

    def forward(self, x):
        return self.ending(self.fc(x))


def softmax_13(x, axis):
    return F.softmax(x, axis)


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (nn.Softmax(1), "softmax"),
        (nn.LogSoftmax(1), "log_softmax"),
        (nn.Sigmoid(), "sigmoid"),
        (lambda x: F.softmax(x, 1), "softmax"),
        (lambda x: torch.softmax(x, 1), "softmax"),
        (lambda x: x.log_softmax(1), "log_softmax"),
        (torch.sigmoid, "sigmoid"),
        (lambda x: x.sigmoid(), "sigmoid"),
        (lambda x: F.log_softmax(x, 1).reshape(-1, 4), "log_softmax"),
        (lambda x: (torch.softmax(x, 1), x), "softmax"),
        (nn.Identity(), ""),
        (lambda x: x * 2, ""),
        (lambda x: torch.relu(torch.softmax(x, 1)), ""),
    ],
)
def test_what_the_network_ends_in(ending, kind: str) -> None:
    gm = fx.symbolic_trace(Ends(ending))
    view, found = split_ending(gm)
    x = torch.randn(3, 12)
    assert found == kind
    whole = gm(x)
    whole = whole[0] if isinstance(whole, tuple) else whole
    torch.testing.assert_close(view(x), gm.fc(x) if kind else whole)


def test_importers_own_functions_are_known_by_name() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(softmax_13, (x, 1)))
    view = logits_module(fx.GraphModule(nn.Module(), graph))
    value = torch.randn(2, 4)
    assert torch.equal(view(value), value)


def test_view_shares_parameters_and_modes() -> None:
    gm = mlp(nn.Softmax(1))
    view = logits_module(gm)
    ours, theirs = dict(gm.named_parameters()), dict(view.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[k] is theirs[k] for k in ours)
    view.train()
    assert gm.get_submodule("1").training
    assert "9" not in dict(view.named_modules())
    assert len(gm.graph.nodes) == len(view.graph.nodes) + 1


def test_value_by_node_or_by_module() -> None:
    gm = mlp()
    x = torch.randn(3, 12)
    wanted = gm.get_submodule("0")(x)
    assert torch.equal(value_module(gm, "0")(x), wanted)
    assert torch.equal(value_module(gm, "_0")(x), wanted)
    with pytest.raises(UsageError, match="no value 'hidden'"):
        value_module(gm, "hidden")
