"""Optimizers and edited models: the groups that the rules ask for, and carrying a running optimizer over an edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .errors import ConflictError, ContractError
from .method import Method, Rule


def rules(model: nn.Module, methods: tuple[Method, ...]) -> dict[nn.Parameter, Rule]:
    """The rule of every trainable parameter: rates multiply, decays must all agree, an owner must be alone."""
    merged = {p: Rule() for p in model.parameters() if p.requires_grad}
    owners: dict[nn.Parameter, str] = {}
    for method in methods:
        for parameter, rule in method.groups(model).items():
            if parameter not in merged:
                continue
            if rule.owned:
                if parameter in owners:
                    names = {id(p): name for name, p in model.named_parameters()}
                    raise ConflictError(
                        f"{owners[parameter]} and {method.name} both own {names[id(parameter)]}; one must let go"
                    )
                owners[parameter] = method.name
            old = merged[parameter]
            merged[parameter] = Rule(
                lr_scale=old.lr_scale * rule.lr_scale,
                decay=old.decay and rule.decay,
                owned=old.owned or rule.owned,
            )
    return merged


def groups(
    model: nn.Module,
    merged: Mapping[nn.Parameter, Rule],
    lr: float,
    weight_decay: float | None,
    defaults: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Parameter groups in a fixed order: first the plain ones, then by falling rate, decay and ownership.

    Every group carries `lr_scale` and `owned`, so that a schedule can multiply rates instead of overwriting them.
    """
    bins: dict[Rule, list[nn.Parameter]] = {Rule(): []}
    for parameter, rule in merged.items():
        bins.setdefault(rule, []).append(parameter)
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    plain, *others = bins
    ordered = [plain, *sorted(others, key=lambda rule: (rule.owned, -rule.lr_scale, not rule.decay))]
    return [
        {
            "params": bins[rule],
            "lr": lr * rule.lr_scale,
            "lr_scale": rule.lr_scale,
            "owned": rule.owned,
            **(decay if rule.decay else {"weight_decay": 0.0}),
            **defaults,
        }
        for rule in ordered
        if bins[rule]
    ]


def migrate(optimizer: torch.optim.Optimizer, before: set[nn.Parameter], merged: Mapping[nn.Parameter, Rule]) -> None:
    """Fits a running optimizer to the edited model: gone parameters leave with their state, new ones join by rule.

    A parameter that is still there keeps its state (momenta, moments) and, unless a rule now asks for another rate or
    for no decay, its group. Groups are only added, behind those that were there; learning-rate schedulers count groups
    when they are built, so build them afterwards.
    """
    first = dict(optimizer.param_groups[0])
    held = {p for group in optimizer.param_groups for p in group["params"]}
    gone = (before - set(merged)) & held
    moved: list[tuple[dict[str, Any], list[nn.Parameter]]] = [(first, [p for p in merged if p not in held])]
    for group in optimizer.param_groups:
        kept = [p for p in group["params"] if p not in gone]
        misplaced = [p for p in kept if p in merged and not _suits(group, merged[p])]
        group["params"] = [p for p in kept if p not in set(misplaced)]
        moved.append((dict(group), misplaced))
    for parameter in gone:
        optimizer.state.pop(parameter, None)
    for near, parameters in moved:
        by_rule: dict[Rule, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_rule.setdefault(merged[parameter], []).append(parameter)
        for rule, alike in by_rule.items():
            optimizer.add_param_group(
                {
                    **near,
                    "params": alike,
                    **{
                        key: near[key] / near.get("lr_scale", 1.0) * rule.lr_scale
                        for key in ("lr", "initial_lr")
                        if key in near
                    },
                    "weight_decay": near.get("weight_decay", 0.0) if rule.decay else 0.0,
                    "lr_scale": rule.lr_scale,
                    "owned": rule.owned,
                }
            )


def _suits(group: Mapping[str, Any], rule: Rule) -> bool:
    """Whether a parameter with this rule may stand in this group of an optimizer."""
    decays = group.get("weight_decay", 0.0) != 0.0
    return bool(rule.lr_scale == group.get("lr_scale", 1.0)) and (rule.decay or not decays)


def check(
    optimizer: torch.optim.Optimizer, model: nn.Module, merged: Mapping[nn.Parameter, Rule], *, stepped: bool = True
) -> None:
    """ContractError when an optimizer was built for the unedited model or without the stack's rules.

    stepped: whether the stack has a step part.
    """
    if stepped and isinstance(optimizer, torch.optim.LBFGS):
        raise ContractError(
            "LBFGS calls the loss several times a step; a stack with a step part needs SGD, Adam or the like"
        )
    names = {p: name for name, p in model.named_parameters()}
    held = {p: group for group in optimizer.param_groups for p in group["params"]}
    missing = [names[p] for p in merged if p not in held]
    if missing:
        # Alone, foreign tensors are no fault: they may be the loss's own, or another model's.
        stale = sum(1 for p in held if p not in names)
        foreign = f" and holds {stale} tensors that are not in the model" if stale else ""
        raise ContractError(
            f"the optimizer lacks {', '.join(missing[:4])}{' and more' if len(missing) > 4 else ''}{foreign}: build it "
            "from applied.groups(lr=...), after stack.apply(), or give stack.apply(..., optimizer=optimizer) the "
            "running one"
        )
    for parameter, rule in merged.items():
        if not _suits(held[parameter], rule):
            raise ContractError(
                f"{names[parameter]} must be in a group with lr_scale={rule.lr_scale:g} and "
                f"{'its' if rule.decay else 'no'} weight decay; build the optimizer from applied.groups(lr=...)"
            )
