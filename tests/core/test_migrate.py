"""Groups by rule, and a running optimizer carried over an edit with its momenta."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import nn

from pliant.core.errors import ConflictError, ContractError
from pliant.core.method import Meta, Method, Phase, Rule
from pliant.core.migrate import check, groups, migrate, rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """One rule for the parameter of a name."""

    of: str = "0.weight"
    lr_scale: float = 1.0
    decay: bool = True
    owned: bool = False

    meta: ClassVar[Meta] = Meta(title="Toy", paper="none", summary="a rule", phase=Phase.VALUES)

    def groups(self, model: nn.Module) -> dict[nn.Parameter, Rule]:
        rule = Rule(lr_scale=self.lr_scale, decay=self.decay, owned=self.owned)
        return {dict(model.named_parameters())[self.of]: rule}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def build(
    model: nn.Module, *methods: Method, lr: float = 0.1, weight_decay: float = 0.01, **more: object
) -> list[dict]:
    return groups(model, rules(model, methods), lr, weight_decay, more)


def test_rates_multiply_and_decays_must_all_agree():
    model = net()
    merged = rules(model, (Toy(lr_scale=0.5), Toy(decay=False), Toy(lr_scale=0.1), Toy(of="1.bias")))
    assert merged[model[0].weight] == Rule(lr_scale=0.05, decay=False)
    assert merged[model[1].bias] == merged[model[0].bias] == Rule()


def test_every_trainable_parameter_has_a_rule_and_frozen_ones_none():
    model = net()
    model[1].weight.requires_grad_(False)
    merged = rules(model, (Toy(of="1.weight", lr_scale=0.1),))
    assert set(merged) == {model[0].weight, model[0].bias, model[1].bias}


def test_two_owners_of_one_parameter_are_refused():
    with pytest.raises(ConflictError, match=r"test_migrate and test_migrate both own 0\.weight; one must let go"):
        rules(net(), (Toy(owned=True), Toy(owned=True)))


def test_groups_come_in_a_fixed_order_with_rates_and_decays():
    model = net()
    made = build(
        model,
        Toy(of="0.bias", decay=False),
        Toy(of="1.weight", lr_scale=0.01),
        Toy(of="1.bias", owned=True, decay=False),
        nesterov=True,
    )
    summary = [(g["lr"], g["weight_decay"], g["lr_scale"], g["owned"], g["nesterov"]) for g in made]
    assert summary == [
        (0.1, 0.01, 1.0, False, True),
        (0.1, 0.0, 1.0, False, True),
        (0.1 * 0.01, 0.01, 0.01, False, True),
        (0.1, 0.0, 1.0, True, True),
    ]
    assert [g["params"] for g in made] == [[model[0].weight], [model[0].bias], [model[1].weight], [model[1].bias]]


def test_empty_groups_are_left_out_and_none_is_empty():
    model = net()
    made = build(model, *(Toy(of=name, decay=False) for name, _ in model.named_parameters()))
    assert len(made) == 1 and made[0]["weight_decay"] == 0.0 and len(made[0]["params"]) == 4


def test_any_torch_optimizer_takes_the_groups():
    for kind in (torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop):
        assert len(kind(build(net(), Toy(decay=False))).param_groups) == 2


# -- a running optimizer -------------------------------------------------------------------------------------------


def running(model: nn.Module) -> torch.optim.SGD:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    return optimizer


def test_state_of_what_stays_is_kept_and_of_what_goes_is_dropped():
    model = net()
    optimizer = running(model)
    momenta = {p: s["momentum_buffer"].clone() for p, s in optimizer.state.items()}
    before, gone = set(model.parameters()), model[0].bias
    model[0].register_parameter("bias", None)
    model.add_module("2", nn.Linear(2, 2))
    migrate(optimizer, before, rules(model, ()))
    assert gone not in optimizer.state and len(optimizer.state) == 3
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], momenta[p]) for p in optimizer.state)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(model.parameters())
    check(optimizer, model, rules(model, ()))


def test_what_a_rule_now_treats_otherwise_moves_with_its_state():
    model = net()
    optimizer = running(model)
    weight, momentum = model[0].weight, optimizer.state[model[0].weight]["momentum_buffer"]
    methods = (Toy(lr_scale=0.1, decay=False),)
    migrate(optimizer, set(model.parameters()), rules(model, methods))
    check(optimizer, model, rules(model, methods))
    (old, new) = optimizer.param_groups
    assert new["params"] == [weight] and weight not in set(old["params"]) and len(old["params"]) == 3
    assert (new["lr"], new["weight_decay"], new["lr_scale"], new["momentum"]) == (0.1 * 0.1, 0.0, 0.1, 0.9)
    assert optimizer.state[weight]["momentum_buffer"] is momentum
    before, expected = weight.detach().clone(), momentum * 0.9
    optimizer.zero_grad()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before - 0.01 * expected)


def test_a_scheduled_rate_is_scaled_with_its_start():
    model = net()
    optimizer = running(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    now = optimizer.param_groups[0]["lr"]
    migrate(optimizer, set(model.parameters()), rules(model, (Toy(lr_scale=0.1),)))
    assert optimizer.param_groups[1]["lr"] == now * 0.1
    assert optimizer.param_groups[1]["initial_lr"] == 0.1 * 0.1


def test_frozen_parameters_in_the_optimizer_are_left_there():
    model = net()
    optimizer = running(model)
    model[1].bias.requires_grad_(False)
    migrate(optimizer, {p for p in model.parameters() if p.requires_grad}, rules(model, ()))
    assert model[1].bias in set(optimizer.param_groups[0]["params"])


# -- what attach refuses -------------------------------------------------------------------------------------------


def test_an_optimizer_without_the_rules_is_refused_by_name():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    check(optimizer, model, rules(model, ()))
    with pytest.raises(ContractError, match=r"0\.weight must be in a group with lr_scale=0\.1 and its weight decay"):
        check(optimizer, model, rules(model, (Toy(lr_scale=0.1),)))
    with pytest.raises(ContractError, match=r"0\.weight must be in a group with lr_scale=1 and no weight decay"):
        check(optimizer, model, rules(model, (Toy(decay=False),)))


def test_no_decay_is_no_demand_on_an_optimizer_without_decay():
    model = net()
    check(torch.optim.SGD(model.parameters(), lr=0.1), model, rules(model, (Toy(decay=False),)))


def test_missing_and_stale_tensors_are_named_with_the_remedy():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].register_parameter("bias", None)
    model.add_module("2", nn.Linear(2, 2))
    with pytest.raises(ContractError) as told:
        check(optimizer, model, rules(model, ()))
    assert "lacks 2.weight, 2.bias and holds 1 tensors that are not in the model" in str(told.value)
    assert "build it from applied.groups(lr=...), after stack.apply()" in str(told.value)


def test_tensors_of_others_are_no_fault():
    model, temperature = net(), nn.Parameter(torch.ones(()))
    check(torch.optim.SGD([*model.parameters(), temperature], lr=0.1), model, rules(model, ()))


def test_lbfgs_is_refused():
    model = net()
    with pytest.raises(ContractError, match="LBFGS calls the loss several times a step"):
        check(torch.optim.LBFGS(model.parameters()), model, rules(model, ()))
