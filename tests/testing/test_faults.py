"""The battery finds every fault that was put into a method on purpose, and none in the method without."""

from __future__ import annotations

import functools
import importlib

import pytest

from pliant.core import registry
from pliant.testing import CheckFailedError, check_method, checks_for
from pliant.testing.battery import PROCESSES
from pliant.testing.processes import Processes

pytestmark = pytest.mark.usefixtures("plugin")

# class of plugin/broken.py, the check that must fail, and a word of the reason
FAULTS = [
    ("PlanMutates", "plan_mutates_nothing", "requires_grad"),
    ("PlanDraws", "plan_mutates_nothing", "torch"),
    ("Silent", "no_match_is_an_error", "says nothing"),
    ("Undeclared", "values_only_where_declared", "out.bias"),
    ("LosesParameter", "names_survive", "out.weight"),
    ("GlobalNoise", "same_seed_same_run", "global generator of torch"),
    ("IgnoresSeed", "same_seed_same_run", "seed is not used"),
    ("ForgetsClock", "interrupted_is_uninterrupted", "differs from the uninterrupted"),
    ("LosesState", "interrupted_is_uninterrupted", "differs from the uninterrupted"),
    ("ClosedOver", "copies_are_independent", "training a deep copy"),
    ("NotOff", "off_is_bitwise_the_base", "training output"),
    ("NotPreserving", "function_is_as_declared", "declared to preserve"),
    ("ChangesNothing", "function_is_as_declared", "it does not"),
    ("Narrow", "float64_throughout", "float32"),
    ("WrongGradient", "gradients_are_derivatives", "Jacobian mismatch"),
    ("NoisyEvaluation", "finalize_is_evaluation", "differs"),
    ("MixesInEvaluation", "evaluation_is_pure", "depends on the others"),
    ("NotExact", "accumulation_is_as_declared", "micro-batches give another gradient"),
    ("HalfStatistics", "bfloat16_autocast_is_finite", "level"),
    ("StrayRule", "groups_hold_each_parameter_once", "no trainable parameter"),
    ("Unwatched", "forgotten_lines_are_errors", "applied.criterion"),
    ("WrongFold", "finalize_is_evaluation", "differs"),
    ("LeavesHook", "finalize_is_evaluation", "hook"),
    ("SpoilsOriginal", "finalize_is_evaluation", "changed the trained model"),
    ("ForeignOp", "finished_net_exports", "gain_test.twice"),
    ("HostNoise", "compiles_as_declared", "host_uniform"),
    ("Callable", "a_method_is_no_layer", "does not raise"),
    ("UnknownExample", "meta_is_consistent", "mpl"),
    ("Untyped", "wrong_settings_are_errors", "strength"),
    ("Unsociable", "pairs_train_or_conflict", "doing here"),
]


@pytest.mark.parametrize(("name", "check", "word"), FAULTS, ids=[name for name, _, _ in FAULTS])
def test_the_check_finds_the_fault(name: str, check: str, word: str) -> None:
    broken = getattr(importlib.import_module("broken"), name)
    run = dict(checks_for(broken))[check]
    with pytest.raises(CheckFailedError) as caught:
        run()
    assert f"{name} fails the check {check!r}" in str(caught.value)
    assert word in str(caught.value)


@functools.cache
def shared() -> Processes:
    """Two processes serve both tests."""
    return Processes(registry.get("gain"), importlib.import_module("broken").NotExact)


def test_the_method_without_faults_passes() -> None:
    for _, check in checks_for(registry.get("gain"), shared()):
        check()


def test_a_declaration_about_processes_is_tested() -> None:
    run = dict(checks_for(importlib.import_module("broken").NotExact, shared()))[PROCESSES]
    with pytest.raises(CheckFailedError, match="two processes on half batches differ from one"):
        run()


def test_check_method_names_the_first_failing_check() -> None:
    with pytest.raises(CheckFailedError, match="UnknownExample fails the check 'meta_is_consistent'"):
        check_method(importlib.import_module("broken").UnknownExample)
