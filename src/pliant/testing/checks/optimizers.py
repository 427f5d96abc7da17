"""The stack and the optimizer: groups, running state, and lines that a training loop forgot."""

from __future__ import annotations

import torch

from pliant.core.clock import PATIENCE
from pliant.core.errors import ContractError
from pliant.core.method import Method, overrides
from pliant.core.migrate import rules

from ..case import Case
from ..snapshot import differing, tensors


def groups_hold_each_parameter_once(case: Case) -> None:
    """Every trainable parameter is in exactly one group, treated by its rule, and two builds are equal."""
    applied = case.apply()
    names = {id(p): name for name, p in applied.model.named_parameters() if p.requires_grad}
    groups = applied.groups(lr=0.5, weight_decay=0.25)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(names), (
        f"groups hold {len(held)} parameters, {len(set(held))} of them different; the model has {len(names)}"
    )
    merged = rules(applied.model, applied.stack.methods)
    for group in groups:
        for parameter in group["params"]:
            rule = merged[parameter]
            due = (0.5 * rule.lr_scale, 0.25 if rule.decay else 0.0, rule.owned)
            found = (group["lr"], group["weight_decay"], group["owned"])
            assert found == due, f"{names[id(parameter)]} is in a group with (lr, decay, owned) {found}, due is {due}"
    listed = [[names[id(p)] for p in group["params"]] for group in groups]
    other = case.apply()
    again = {id(p): name for name, p in other.model.named_parameters()}
    rebuilt = [[again[id(p)] for p in group["params"]] for group in other.groups(lr=0.5, weight_decay=0.25)]
    assert listed == rebuilt, f"two builds order the parameters differently: {listed} and {rebuilt}"
    for parameter in case.method.groups(applied.model):
        assert id(parameter) in names, "groups() gives a rule for a tensor that is no trainable parameter of the model"


def running_optimizer_survives(case: Case) -> None:
    """apply(..., optimizer=running) keeps the moments of every parameter that stays, bit for bit, and fits the rest."""
    net = case.example.net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, weight_decay=0.01)
    for x, y in case.example.batches(2):
        # At rate 0: moments without moved values, as some methods are for untrained values only.
        case.example.loss(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.param_groups[0]["lr"] = 0.01
    names = {id(p): name for name, p in net.named_parameters()}
    had = {p: {key: value.clone() for key, value in state.items()} for p, state in optimizer.state.items()}
    applied = case.apply(net, optimizer=optimizer)
    trainable = {p for p in applied.model.parameters() if p.requires_grad}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)), "a parameter is in two groups of the running optimizer"
    lacking, stale = len(trainable - set(held)), len(set(held) - trainable)
    assert not lacking and not stale, f"the running optimizer lacks {lacking} parameters and holds {stale} stale ones"
    for parameter, state in had.items():
        if parameter in trainable:
            found = differing(state, optimizer.state[parameter])
            assert not found, f"the running optimizer's {', '.join(found)} of {names[id(parameter)]} changed"
        else:
            assert parameter not in optimizer.state, (
                f"the state of the gone parameter {names[id(parameter)]} is still held"
            )
    case.train(applied, applied.attach(optimizer, total_steps=100), case.example.batches(2))
    bad = [name for name, tensor in tensors(applied.model).items() if not bool(tensor.isfinite().all())]
    assert not bad, f"not finite after going on with the running optimizer: {', '.join(bad[:4])}"


def unfit_optimizers_are_refused(case: Case) -> None:
    """attach refuses an optimizer built before apply, or without the rules, whenever that would be wrong."""
    net = case.example.net()
    had = {p for p in net.parameters() if p.requires_grad}
    early = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.01)
    applied = case.apply(net)
    merged = rules(applied.model, applied.stack.methods)
    ruled = any(rule.lr_scale != 1.0 or not rule.decay for rule in merged.values())
    for optimizer, what, wrong in (
        (early, "built before apply", ruled or had != set(merged)),
        (torch.optim.SGD(merged, lr=0.1, weight_decay=0.01), "built without applied.groups", ruled),
    ):
        try:
            applied.attach(optimizer)
        except ContractError as error:
            assert wrong, f"attach refused an optimizer {what} that fits: {error}"
            assert "applied.groups" in str(error), f"the error does not name the remedy applied.groups: {error}"
        else:
            assert not wrong, f"attach took an optimizer {what}, which would train it wrongly"


def forgotten_lines_are_errors(case: Case) -> None:
    """100 training forwards without the criterion, or without attach, raise and name the missing line."""
    method = case.method
    if overrides(method, "terms") or overrides(method, "loss"):
        _must_raise(case, "applied.criterion", criterion=False)
    if overrides(method, "before_step") or overrides(method, "after_step"):
        _must_raise(case, "applied.attach", criterion=True)


def _must_raise(case: Case, line: str, *, criterion: bool) -> None:
    applied = case.apply()
    whole = applied.criterion(case.example.loss)
    loss = whole if criterion else whole.base
    x, y = case.example.batch()
    try:
        for _ in range(PATIENCE + 1):
            loss(applied.model(x), y)
    except ContractError as error:
        assert line in str(error), f"the error does not name the missing line {line}: {error}"
        assert case.method.name in str(error), f"the error does not name the method: {error}"
        return
    raise AssertionError(f"{PATIENCE} training forwards without {line}(...) passed without an error")


def has_lines_to_forget(cls: type[Method]) -> bool:
    """Whether a loop can forget something that the method needs."""
    parts = ("terms", "loss", "before_step", "after_step")
    return any(getattr(cls, part) is not getattr(Method, part) for part in parts)
