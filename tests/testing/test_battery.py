"""Which checks a method gets, on which nets and settings."""

from __future__ import annotations

from pliant.core import registry
from pliant.testing import checks_for, parametrize_with_checks
from pliant.testing.case import Case


def test_checks_follow_what_a_method_has() -> None:
    of_batch_norm, of_batchless, of_depth = (
        {name for name, _ in checks_for(registry.get(name))}
        for name in ("batch_norm", "batchless_norm", "stochastic_depth")
    )
    assert of_batchless - of_batch_norm == {"forgotten_lines_are_errors"}
    assert of_depth - of_batch_norm == {"off_is_bitwise_the_base"}
    assert len(of_batch_norm) >= 24


def test_every_method_and_check_has_its_own_id() -> None:
    parameters = parametrize_with_checks().args[1]
    ids = [parameter.id for parameter in parameters]
    assert len(ids) == len(set(ids)) >= 24 * len(registry.names())
    assert all(any(registry.get(name).__name__ == id.partition("-")[0] for name in registry.names()) for id in ids)


def test_variants_change_every_flag_and_choice() -> None:
    methods = [case.method for case in Case(registry.get("stochastic_depth")).variants()]
    assert {method.scale for method in methods} == {"test", "train", "none"}
    assert {method.recalibrate for method in methods} == {True, False}
    assert any(method.p_last == 1.0 for method in methods)


def test_everywhere_is_every_net_with_a_place() -> None:
    assert {case.net for case in Case(registry.get("stochastic_depth")).everywhere()} == {
        "residual",
        "preact",
        "attention",
    }
    assert {case.net for case in Case(registry.get("bn_scale_init")).everywhere()} == {"mlp_bn", "residual"}


def test_a_case_is_a_function_of_its_seed() -> None:
    case = Case(registry.get("stochastic_depth"))
    one, other = (case.apply(seed=seed) for seed in (0, 1))
    x = case.example.sample()
    opened = []
    for applied in (one, other):
        for _ in range(16):
            applied.model(x)
            opened.append(tuple(block.forward.open[0] for block in applied.model.layers))
    assert opened[:16] != opened[16:]
