"""Where normalisations go: what feeds an activation, in nets of many styles, and why other places are left alone."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core.context import Context
from pliant.core.errors import NoMatchError, SettingError
from pliant.core.sites import Attach, attached, detach, find_sites, normalised


class Fn(nn.Module):
    """fc1, fc2 and a ReLU joined by the given function."""

    def __init__(self, fn: Any) -> None:
        super().__init__()
        self.fn = fn
        self.fc1, self.fc2, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        return self.fn(self, x)


X = torch.linspace(-1, 1, 12).view(3, 4)


def places(model: nn.Module, position: str = "before_activation", where: Any = None, x: Tensor = X) -> list[str]:
    return [site.path for site in find_sites(model, Context(sample=x), where, position)[0]]


def reasons(model: nn.Module, position: str = "before_activation", where: Any = None, x: Tensor = X) -> dict[str, str]:
    return {skip.path: skip.reason for skip in find_sites(model, Context(sample=x), where, position)[1]}


@pytest.mark.parametrize(
    "activation",
    [
        F.relu,
        torch.relu,
        torch.sigmoid,
        torch.tanh,
        F.gelu,
        F.silu,
        F.elu,
        F.leaky_relu,
        F.softplus,
        F.hardtanh,
        F.mish,
        torch.selu,
        lambda x: x.relu(),
        lambda x: x.sigmoid(),
        lambda x: x.tanh_(),
        lambda x: F.relu(x, inplace=True),
        lambda x: torch.relu_(x),
        nn.PReLU(),
        nn.Hardswish(),
    ],
)
def test_activations_of_every_style_are_known(activation: Any):
    model = Fn(lambda m, x: m.fc2(m.activation(m.fc1(x))))
    model.activation = activation
    assert places(model) == ["fc1"]


@pytest.mark.parametrize(
    "after", [lambda x: x.softmax(-1), F.log_softmax, torch.exp, torch.square, lambda x: x.sum(-1, keepdim=True) + x]
)
def test_other_functions_are_no_activations(after: Any):
    with_dim = (lambda x: after(x, dim=-1)) if after is F.log_softmax else after
    assert places(Fn(lambda m, x: m.fc2(with_dim(m.fc1(x))))) == []


def test_every_linear_layer_kind_is_a_candidate():
    layers = [
        (nn.Linear(4, 6), torch.ones(2, 4), 1, 6),
        (nn.Conv1d(4, 6, 1), torch.ones(2, 4, 5), 1, 6),
        (nn.Conv2d(4, 6, 1, groups=2), torch.ones(2, 4, 5, 5), 1, 6),
        (nn.Conv3d(4, 6, 1), torch.ones(2, 4, 3, 3, 3), 1, 6),
        (nn.ConvTranspose1d(4, 6, 1), torch.ones(2, 4, 5), 1, 6),
        (nn.ConvTranspose2d(4, 6, 1, groups=2), torch.ones(2, 4, 5, 5), 1, 6),
        (nn.ConvTranspose3d(4, 6, 1), torch.ones(2, 4, 3, 3, 3), 1, 6),
        (nn.Linear(4, 6), torch.ones(2, 3, 4), 2, 6),
    ]
    for layer, x, dim, features in layers:
        (site,) = find_sites(nn.Sequential(layer, nn.ReLU()), Context(sample=x), None, "before_activation")[0]
        assert (site.path, site.source, site.channel_dim, site.features) == ("0", "0", dim, features)


def test_the_last_layer_is_left_alone():
    model = nn.Sequential(OrderedDict(fc=nn.Linear(4, 4), act=nn.ReLU(), out=nn.Linear(4, 2)))
    assert places(model) == ["fc"]
    assert reasons(model) == {"out": "its output is the model's output"}


@pytest.mark.parametrize(
    ("fn", "path", "reason"),
    [
        (lambda m, x: m.act(m.fc1(m.act(m.fc1(x)))), "fc1", "called 2 times in one forward"),
        (lambda m, x: m.act(m.fc1(x)) + m.fc1.weight.sum() + m.fc2(x), "fc2", "followed by add, not by an activation"),
        (lambda m, x: (lambda h: m.act(h) + h)(m.fc1(x)), "fc1", "its output has 2 consumers"),
        (lambda m, x: (m.fc1(x), x)[1] + 0, "fc1", "nothing uses its output"),
    ],
)
def test_other_places_say_why(fn: Any, path: str, reason: str):
    model = Fn(fn)
    assert path not in places(model)
    assert reasons(model)[path].startswith(reason)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.InstanceNorm1d(4)]
)
def test_layers_that_are_normalised_already_are_left_alone(norm: nn.Module):
    x = torch.randn(3, 4, 4) if isinstance(norm, nn.InstanceNorm1d) else X
    first = nn.Conv1d(4, 4, 1) if isinstance(norm, nn.InstanceNorm1d) else nn.Linear(4, 4)
    model = nn.Sequential(first, norm, nn.ReLU())
    assert reasons(model, x=x) == {"0": "already normalised by '1'"}


def test_asking_for_a_shape_is_no_consumer():
    model = Fn(lambda m, x: (lambda h: m.act(h) if h.shape[-1] == 4 else h)(m.fc1(x)))
    assert places(model) == ["fc1"]


def test_after_activation_attaches_to_the_activation_module():
    model = nn.Sequential(OrderedDict(fc=nn.Linear(4, 5), act=nn.ReLU(), out=nn.Linear(5, 2)))
    ((site,), _) = find_sites(model, Context(sample=X), None, "after_activation")
    assert (site.path, site.source, site.features, site.activation) == ("act", "fc", 5, "act")


def test_after_activation_needs_a_module_of_its_own():
    functional = Fn(lambda m, x: m.fc2(F.relu(m.fc1(x))))
    assert "its activation relu is a function call" in reasons(functional, "after_activation")["fc1"]
    shared = Fn(lambda m, x: m.act(m.fc2(m.act(m.fc1(x)))))
    assert reasons(shared, "after_activation")["fc2"] == "its activation module 'act' is shared by 2 layers"


def test_names_force_places_and_pass_over_the_others():
    model = nn.Sequential(OrderedDict(fc=nn.Linear(4, 4), act=nn.ReLU(), out=nn.Linear(4, 2)))
    assert places(model, where=["out"]) == ["out"]
    assert reasons(model, where=["out"]) == {"fc": "not selected by where="}


def test_a_name_without_a_match_is_an_error():
    with pytest.raises(NoMatchError, match="where='fc3' matches none of the linear and convolution layers"):
        places(Fn(lambda m, x: m.fc2(m.act(m.fc1(x)))), where=["fc3"])


def test_positions_are_two():
    with pytest.raises(SettingError, match="position='before'; choose"):
        find_sites(nn.Sequential(), Context(sample=X), None, "before")


def test_finding_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU())
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    places(model)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert torch.equal(state, torch.get_rng_state()) and not any(m._forward_hooks for m in model.modules())


# -- attaching ---------------------------------------------------------------------------------------------------


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def attach(model: nn.Module, path: str = "0") -> None:
    Attach(path=path, detail="twice", name="norm", make=Double).apply(model)


def test_a_site_runs_on_the_layers_output_and_keeps_every_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    weight, names, plain = model[0].weight, set(model.state_dict()), model[0](X)
    attach(model)
    assert torch.equal(model[0](X), 2 * plain)
    assert model[0].weight is weight and set(model.state_dict()) == names
    assert normalised(model[0]) and isinstance(model[0].norm, Double)
    assert [(path, name) for path, _, name, _ in attached(model, Double)] == [("0", "norm")]
    assert attached(model, nn.BatchNorm1d) == []


def test_detaching_leaves_the_layer_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].register_forward_hook(lambda *_: None)
    keys, plain = set(vars(model[0])), model(X)
    attach(model)
    detach(model[0], "norm")
    assert set(vars(model[0])) == keys and list(model[0].children()) == []
    assert torch.equal(model(X), plain) and len(model[0]._forward_hooks) == 1


def test_copies_run_their_own_child():
    model = nn.Sequential(nn.Linear(4, 4))
    attach(model)
    twin = copy.deepcopy(model)
    twin[0].norm = nn.Identity()
    assert torch.equal(model(X), 2 * twin(X))


@pytest.mark.parametrize("training", [True, False])
def test_a_new_module_has_the_layers_dtype_and_mode(training: bool):
    model = nn.Sequential(nn.Linear(4, 4)).double().train(training)
    Attach(path="0", detail="", name="norm", make=lambda: nn.BatchNorm1d(4)).apply(model)
    assert model[0].norm.weight.dtype is torch.float64 and model[0].norm.training is training


def test_works_within_sequential_sub_nets():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    assert places(model) == ["0.0", "1.0"]
    attach(model, "1.0")
    assert places(model) == ["0.0"] and reasons(model)["1.0"] == "already normalised"
    assert [type(m).__name__ for m in model[1]] == ["Linear", "Tanh"]
