"""Residual branches in blocks of many styles: found, closed to the shortcut, open to the plain block; or refused."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core.gate import Gates
from pliant.core.residual import Program, cut, scaled


class Basic(nn.Module):
    """torchvision's BasicBlock: downsample, in-place ReLU and `out += identity`."""

    def __init__(self, width: int = 4, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if width != 4 or stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(4, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
        self.conv2, self.bn2 = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.conv3, self.bn3 = nn.Conv2d(2, 8, 1), nn.BatchNorm2d(8)
        self.project = nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(torch.add(self.bn3(self.conv3(out)), self.project(x)))


class Preact(nn.Module):
    """Pre-activation whose first norm and ReLU feed both the branch and the projection."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.shortcut = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        return out + shortcut


class Functional(nn.Module):
    """Raw parameters and buffers, functional calls, the sum as `x.add(...)`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)
        self.bias = nn.Parameter(torch.randn(4))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        out = F.conv2d(x, self.weight, self.bias, padding=1)
        out = F.batch_norm(out, self.mean, self.var, training=self.training)
        return x.add(F.relu(out))


class ByShape(nn.Module):
    """Projects only where the shapes ask for it, pads odd sizes: control flow on data's shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.project = nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(torch.relu(self.conv1(x)))
        if x.shape[1] != out.shape[1]:
            x = self.project(x)
        return x + out


class Keywords(nn.Module):
    """Arguments by keyword, one of them no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, *, x: Tensor, scale: float = 1.0, extra: Tensor | None = None) -> Tensor:
        out = self.fc(x) * scale
        if extra is not None:
            out = out * extra
        return x + out


class Residual(nn.Module):
    """The wrapper of the einops school: Residual(fn)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.fn(x, **options) + x


class Prenorm(nn.Module):
    """A transformer block with two additions."""

    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 4))

    def attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, width).unbind(2)
        return self.proj(F.scaled_dot_product_attention(q, k, v, dropout_p=0.3 if self.training else 0.0))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Point(NamedTuple):
    sum: Tensor
    rest: list[Any]


class ShortBranch(nn.Module):
    """One layer in the branch, and a shortcut with more modules, none of which has parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(4, 8, 3, 2, 1), nn.AvgPool2d(2, ceil_mode=True)
        self.pad, self.still = nn.ZeroPad3d((0, 0, 0, 0, 0, 4)), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.still(self.pad(self.pool(x))) + self.conv(x)


class TwoResults(nn.Module):
    """Returns a structure; a later part reads both the sum and the input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        total = x + torch.tanh(self.fc(x))
        return {"sum": total, "rest": (self.head(total), x * 2, 7), "point": Point(total, [x])}


def image() -> Tensor:
    return torch.randn(3, 4, 5, 5)


def tokens() -> Tensor:
    return torch.randn(2, 3, 4)


def encoder_layer(norm_first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True, norm_first=norm_first)


def _attention_skipped(m: Any, x: Tensor) -> Tensor:
    return m.norm2(m.norm1(x) + m._ff_block(m.norm1(x)))


@dataclasses.dataclass(frozen=True)
class Style:
    """make: the block; given: its input; shut[i]: what the block computes with branch i closed, written by hand."""

    make: Callable[[], nn.Module]
    given: Callable[[], Tensor]
    shut: tuple[Callable[[Any, Tensor], Any], ...]


STYLES = {
    "basic": Style(Basic, image, (lambda m, x: F.relu(x),)),
    "basic_downsample": Style(lambda: Basic(8, 2), image, (lambda m, x: F.relu(m.downsample(x)),)),
    "bottleneck_torch_add": Style(Bottleneck, image, (lambda m, x: F.relu(m.project(x)),)),
    "preact_shared": Style(Preact, image, (lambda m, x: m.shortcut(F.relu(m.bn1(x))),)),
    "functional_add_method": Style(Functional, image, (lambda m, x: x,)),
    "by_shape_projecting": Style(lambda: ByShape(6), image, (lambda m, x: m.project(x),)),
    "by_shape_plain": Style(lambda: ByShape(4), image, (lambda m, x: x,)),
    "short_branch": Style(ShortBranch, image, (lambda m, x: m.pad(m.pool(x)),)),
    "wrapper": Style(lambda: Residual(nn.Linear(4, 4)), tokens, (lambda m, x: x,)),
    "wrapper_nested": Style(lambda: Residual(Residual(nn.Linear(4, 4))), tokens, (lambda m, x: x,)),
    "prenorm_transformer": Style(
        Prenorm,
        tokens,
        (lambda m, x: x + m.mlp(m.ln2(x)), lambda m, x: x + m.attend(m.ln1(x))),
    ),
    "encoder_layer": Style(
        lambda: encoder_layer(False),
        tokens,
        (_attention_skipped, lambda m, x: m.norm2(m.norm1(x + m._sa_block(x, None, None)))),
    ),
    "encoder_layer_norm_first": Style(
        lambda: encoder_layer(True),
        tokens,
        (lambda m, x: x + m._ff_block(m.norm2(x)), lambda m, x: x + m._sa_block(m.norm1(x), None, None)),
    ),
    "structure": Style(
        TwoResults, tokens, (lambda m, x: {"sum": x, "rest": (m.head(x), x * 2, 7), "point": Point(x, [x])},)
    ),
}


def gated(block: nn.Module, x: Tensor) -> tuple[nn.Module, Gates]:
    """A copy of the block with its branches gated, in train mode."""
    twin = copy.deepcopy(block)
    programs = []
    for training in (True, False):
        program = cut(copy.deepcopy(block).train(training), ((x.clone(),), {}))
        assert isinstance(program, Program), program
        programs.append(program)
    count = len(programs[0].gates)
    twin.forward = Gates(twin, programs[0], programs[1], (0.5,) * count, ((1.0, 1.0),) * count)
    return twin.train(), twin.forward


def seeded(call: Callable[[], Any]) -> Any:
    torch.manual_seed(5)
    return call()


def assert_equal(one: Any, other: Any) -> None:
    left, right = torch.utils._pytree.tree_flatten(one), torch.utils._pytree.tree_flatten(other)
    assert left[1] == right[1]
    for a, b in zip(left[0], right[0], strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


@pytest.fixture(params=list(STYLES))
def style(request: pytest.FixtureRequest) -> Style:
    torch.manual_seed(0)
    return STYLES[request.param]


def test_every_branch_is_found(style: Style):
    assert len(gated(style.make(), style.given())[1].open) == len(style.shut)


@pytest.mark.parametrize("training", [True, False])
def test_open_branches_are_the_plain_block_bit_for_bit(style: Style, training: bool):
    block, x = style.make(), style.given()
    twin, _ = gated(block, x)
    block.train(training), twin.train(training)
    assert_equal(seeded(lambda: block(x.clone())), seeded(lambda: twin(x.clone())))
    assert_equal(dict(block.named_buffers()), dict(twin.named_buffers()))


def test_gradients_of_open_branches_are_the_plain_blocks(style: Style):
    block, x = style.make().train(), style.given()
    twin, _ = gated(block, x)
    gradients = []
    for module in (block, twin):
        given = x.clone().requires_grad_()
        leaves = torch.utils._pytree.tree_leaves(seeded(lambda m=module, g=given: m(g * 1)))
        sum(leaf.square().sum() for leaf in leaves if isinstance(leaf, Tensor)).backward()
        gradients.append([given.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_a_closed_branch_leaves_the_shortcut_and_touches_nothing_of_its_own(style: Style):
    block, x = style.make(), style.given()
    for number, shut in enumerate(style.shut):
        twin, gates = gated(block, x)
        gates.open[number] = False
        called = [(s.gate, name) for s in gates.programs[True].segments for name in s.modules]
        children = {name for gate, name in called if gate == number} - {n for gate, n in called if gate != number}
        before = {k: v.clone() for name in children for k, v in twin.get_submodule(name).state_dict().items()}
        ran: list[str] = []
        for name in children:
            twin.get_submodule(name).register_forward_hook(lambda *_, name=name, ran=ran: ran.append(name))
        expected = seeded(lambda shut=shut: shut(copy.deepcopy(block).train(), x.clone()))
        torch.manual_seed(5)
        got = twin(x.clone())
        assert_equal(expected, got)
        assert ran == []
        after = {k: v for name in children for k, v in twin.get_submodule(name).state_dict().items()}
        assert_equal(before, after)


def test_closed_gates_are_open_in_evaluation(style: Style):
    block, x = style.make().eval(), style.given()
    twin, gates = gated(block, x)
    twin.eval()
    gates.open[:] = [False] * len(gates.open)
    assert_equal(block(x), twin(x))


def test_the_factor_multiplies_the_branch_alone():
    torch.manual_seed(0)
    block, x = Basic(8, 2).eval(), image()
    twin, gates = gated(block, x)
    gates.factors = ((1.0, 0.25),)
    branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    assert torch.equal(twin.eval()(x), F.relu(branch * 0.25 + block.downsample(x)))


@pytest.mark.parametrize("kind", ["basic", "prenorm_transformer", "preact_shared"])
def test_a_closed_branch_lends_its_input_to_nobody(kind: str):
    torch.manual_seed(0)
    block, x = STYLES[kind].make(), STYLES[kind].given()
    twin, gates = gated(block, x)
    gates.open[:] = [False] * len(gates.open)
    before = x.clone()
    assert gates.programs[True].gates[-1].copied
    twin(x).mul_(0.0)
    assert torch.equal(x, before)


def test_no_copy_is_made_where_the_sum_stays_inside():
    torch.manual_seed(0)
    _, gates = gated(Bottleneck(), image())
    assert not gates.programs[True].gates[0].copied


def test_skipped_blocks_with_in_place_activations_can_be_trained():
    torch.manual_seed(0)
    x = image()
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid(), *(gated(Basic(), x)[0] for _ in range(2)))
    for block in net[2:]:
        block.forward.open[0] = False
    net(x).sum().backward()
    sigmoid = torch.sigmoid(net[0](x)).detach()
    expected = torch.einsum("nchw,nihw->ci", sigmoid * (1 - sigmoid), x)
    torch.testing.assert_close(net[0].weight.grad[..., 0, 0], expected)


def test_keyword_arguments_and_their_defaults():
    block = Keywords()
    x, extra = torch.randn(2, 4), torch.randn(2, 4)
    program = cut(block, ((), {"x": x, "extra": extra}))
    assert isinstance(program, Program)
    block.forward = Gates(block, program, program, (0.5,), ((1.0, 1.0),))
    plain = Keywords()
    plain.load_state_dict(block.state_dict())
    assert torch.equal(block(x=x, extra=extra), plain(x=x, extra=extra))
    block.forward.open[0] = False
    assert torch.equal(block(extra=extra, x=x), x)


def test_scaling_by_one_returns_the_very_tensor():
    value = torch.randn(2)
    assert scaled(value, 1.0) is value
    assert torch.equal(scaled(value, 0.5), value * 0.5)
