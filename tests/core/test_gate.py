"""Finding gated blocks in whole models, naming them, and what a gate refuses at run time."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from pliant.core.context import Context
from pliant.core.errors import NoMatchError, TraceError
from pliant.core.gate import find_gates, gates, ungate
from pliant.core.selectors import Residual


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.fc(x))


class Opaque(nn.Module):
    """Leaves torch in the middle, so that no graph of it can be written."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor:
            raise RuntimeError("only plain tensors here")
        return x + self.body(x)


def net(*blocks: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(*blocks), nn.Linear(4, 2))


def context() -> Context:
    return Context(sample=torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))


def apply(model: nn.Module, where: tuple | None = None, factors: tuple[float, float] = (1.0, 1.0)) -> None:
    for edit in find_gates(model, context(), where)[0]:
        n = edit.count
        dataclasses.replace(edit, chances=(0.5,) * n, factors=(factors,) * n).apply(model)


class Late(nn.Module):
    """Holds its blocks in another order than it runs them in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.second(x))


def test_blocks_are_found_in_the_order_in_which_they_run():
    found, skipped = find_gates(Late(), context(), None)
    assert [edit.path for edit in found] == ["second", "first"] and skipped == []


def test_a_block_inside_a_blocks_branch_is_found_too():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Block()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    model = net(Outer())
    x = context().sample
    plain = model(x)
    apply(model)
    assert [path for path, _ in gates(model)] == ["1.0", "1.0.inner"]
    assert torch.equal(model(x), plain)
    outer, inner = (forward for _, forward in gates(model))
    h = model[0](x)
    branch = torch.tanh(model[1][0].inner.fc(h))
    inner.open[0] = False
    assert torch.equal(model(x), model[2](h + h))
    inner.open[0], outer.open[0] = True, False
    assert torch.equal(model(x), model[2](h))
    outer.open[0] = True
    assert torch.equal(model(x), model[2](h + (h + branch)))


def test_finding_leaves_the_model_and_the_random_numbers_alone():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), Block())
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    model.eval()
    find_gates(model, context(), None)
    assert torch.equal(state, torch.get_rng_state()) and not model.training
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_a_block_called_twice_is_passed_over_with_the_reason():
    block = Block()
    found, skipped = find_gates(nn.Sequential(block, block, Block()), context(), None)
    assert [edit.path for edit in found] == ["2"]
    assert [(skip.path, skip.reason) for skip in skipped] == [("0", "called 2 times in one forward")]


def test_names_choose_blocks():
    found, _ = find_gates(net(Block(), Block(), Block()), context(), ("1.0", "1.2"))
    assert [edit.path for edit in found] == ["1.0", "1.2"]
    with pytest.raises(NoMatchError, match=r"where='1\.9' matches none of the modules with children"):
        find_gates(net(Block()), context(), ("1.9",))


def test_a_block_that_cannot_be_followed_says_how_to_name_it():
    found, skipped = find_gates(net(Opaque()), context(), ("1.0",))
    assert found == [] and 'where=[Residual("path", branch="child")]' in skipped[0].reason


@pytest.mark.parametrize("training", [True, False])
def test_a_named_branch_open_is_the_plain_block_and_closed_the_shortcut(training: bool):
    model, x = net(Opaque(), Opaque()).train(training), context().sample
    plain = model(x)
    apply(model, (Residual("1.*", branch="body"),))
    assert [path for path, _ in gates(model)] == ["1.0.body", "1.1.body"]
    assert torch.equal(model(x), plain)
    for _, forward in gates(model):
        forward.open[0] = False
    assert torch.equal(model(x), model[2](model[0](x)) if training else plain)


def test_the_factors_of_a_named_branch():
    model, x = net(Opaque()), context().sample
    apply(model, (Residual("1.0", branch="body"),), factors=(2.0, 0.25))
    h = model[0](x)
    branch = model[1][0].body[1](model[1][0].body[0](h))
    assert torch.equal(model(x), model[2](h + branch * 2.0))
    assert torch.equal(model.eval()(x), model[2](h + branch * 0.25))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Residual("1.0", branch="bdy"), "'1.0' has no child 'bdy' that is called; its children: 'body'"),
        (Residual("1.7", branch="body"), "where='1.7' matches none of the modules this model calls"),
    ],
)
def test_a_wrong_name_is_told_what_there_is(choice: Residual, message: str):
    with pytest.raises((TraceError, NoMatchError), match=message.replace(".", r"\.")):
        find_gates(net(Opaque()), context(), (choice,))


class InPlaceSum(Opaque):
    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out += x
        return out


class Flattens(Opaque):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).reshape(-1)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [(InPlaceSum, r"'0' fails \(RuntimeError"), (Flattens, r"'0' returns \[\(1,\)\], not \[\(12,\)\]")],
)
def test_a_named_branch_that_cannot_be_left_out_is_refused_at_once(kind: type[nn.Module], problem: str):
    model = nn.Sequential(kind())
    with pytest.raises(TraceError, match=f"{problem}.*when its branch 'body' is left out; .*as in x "):
        find_gates(model, context(), (Residual("0", branch="body"),))
    assert "forward" not in vars(model[0].body)


def test_without_a_sample_the_remedy_is_named():
    with pytest.raises(TraceError, match="pass sample=x"):
        find_gates(net(Block()), Context(), None)


class ShapeBound(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x) if x.shape[-1] == 4 else x
        return x + y * (1 if x.shape[1] == 3 else 2)


def test_a_block_that_decides_by_shape_refuses_another_shape_but_any_batch():
    model = nn.Sequential(ShapeBound())
    x = torch.randn(5, 3, 4)
    for edit in find_gates(model, Context(sample=x), None)[0]:
        edit.apply(model)
    forward = model[0].forward
    forward.chances, forward.factors = (0.5,), ((1.0, 1.0),)
    plain = ShapeBound()
    plain.load_state_dict(model[0].state_dict())
    assert torch.equal(model(x[:2]), plain(x[:2]))
    with pytest.raises(TraceError, match=r"followed with \(5, 3, 4\); it now gets \(5, 2, 4\)"):
        model(x[:, :2])


def test_another_constant_than_the_recorded_one_is_refused():
    class Scaled(Block):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return x + self.fc(x) * scale

    model = Scaled()
    apply(model)
    model(context().sample, 1.0)
    with pytest.raises(TraceError, match=r"followed with scale=1\.0 and is now called with 2\.0"):
        model(context().sample, scale=2.0)


def test_copies_have_gates_of_their_own():
    model, x = net(Block()), context().sample
    apply(model)
    twin = copy.deepcopy(model)
    (_, mine), (_, copied) = gates(model)[0], gates(twin)[0]
    assert copied is not mine and copied.block is twin[1][0]
    copied.open[0] = False
    with torch.no_grad():
        twin[1][0].fc.weight.zero_()
    h = model[0](x)
    assert torch.equal(model(x), model[2](h + torch.tanh(model[1][0].fc(h))))


def test_ungating_gives_the_class_its_forward_back():
    model = net(Block())
    apply(model)
    ungate(model[1][0])
    assert "forward" not in vars(model[1][0]) and gates(model) == []


def test_compiling_a_gated_net_whole_in_training_is_refused_with_the_remedy():
    model = net(Block())
    apply(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"call applied\.compile\(\) instead"):
        compiled(context().sample)


# torch looks at .grad of the segment's input and hides its own warning, which pytest has turned into an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_parts_keep_the_gates_in_python():
    # More of a kind than the eight recompilations that dynamo grants one code object.
    model, x = net(*(Block() for _ in range(10)), *(Opaque() for _ in range(10))), context().sample
    apply(model, (*(f"1.{i}" for i in range(10)), *(Residual(f"1.{i}", branch="body") for i in range(10, 20))))
    assert len(gates(model)) == 20
    plain = model(x)
    skipped = model[2](model[0](x))
    for _, forward in gates(model):
        forward.compile(backend="aot_eager")
    torch.testing.assert_close(model(x), plain)
    for _, forward in gates(model):
        forward.open[0] = False
    torch.testing.assert_close(model(x), skipped)
    twin = copy.deepcopy(model)
    for _, forward in gates(twin):
        forward.uncompile()
        forward.open[0] = True
    assert torch.equal(twin(x), plain)
