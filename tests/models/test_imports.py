from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest
from torch import nn

from pliant.core.errors import InputError
from pliant.models import build

SHAPE = {"input_shape": (1, 8, 8), "classes": 10}
NET = """
from torch import nn
from wide_layers import WIDTH

class Net(nn.Sequential):
    def __init__(self, classes, width=WIDTH):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, classes))

def build_net(classes, width=WIDTH):
    return Net(classes, width)

value = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "wide_layers.py").write_text("WIDTH = 17\n")
    return tmp_path


@pytest.fixture(autouse=True)
def forget_modules() -> object:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("pliant_user", "wide_layers", "net", "house")):
            del sys.modules[name]


def test_a_file_with_its_neighbours(folder: Path) -> None:
    path = list(sys.path)
    for net in (
        build(f"{folder}/net.py:build_net", **SHAPE),
        build("net.py:Net", **SHAPE, root=folder),
    ):
        assert (net[1].out_features, net[2].out_features) == (17, 10)
    assert build({"name": "net.py:build_net", "width": 3}, **SHAPE, root=folder)[1].out_features == 3
    assert sys.path == path


def test_from_the_current_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert build("net.py:build_net", **SHAPE)[2].out_features == 10
    assert build("net:build_net", **SHAPE)[2].out_features == 10


def test_a_file_runs_once_until_it_changes(folder: Path) -> None:
    file = folder / "net.py"
    first, second = (build("net.py:Net", **SHAPE, root=folder) for _ in range(2))
    assert type(first) is type(second)
    assert type(pickle.loads(pickle.dumps(first))) is type(first)
    file.write_text(NET.replace("nn.Flatten()", "nn.Flatten(1)").replace("width=WIDTH", "width=5"))
    os.utime(file, ns=(1, 1))
    assert build("net.py:Net", **SHAPE, root=folder)[1].out_features == 5


def test_a_module_in_a_package(folder: Path) -> None:
    (folder / "house").mkdir()
    (folder / "house/rooms.py").write_text("from torch import nn\ndef small():\n    return nn.Flatten()\n")
    assert isinstance(build("house.rooms:small", **SHAPE, root=folder), nn.Flatten)
    with pytest.raises(InputError, match=r"module 'house\.cellar' is not importable"):
        build("house.cellar:small", **SHAPE, root=folder)
    assert isinstance(build("torch.nn:Flatten", **SHAPE), nn.Flatten)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nat.py:build_net", r"nat\.py: no such file; did you mean 'net\.py'"),
        ("absent/net.py:build_net", "no such file; there is nothing"),
        ("net.py:buildnet", r"net\.py has no 'buildnet': did you mean 'build_net'"),
        ("net.py:", "expected file.py:factory or package.module:factory"),
        (":build_net", "expected file.py:factory"),
        ("net.py:value", r"net\.py:value is a int, expected a function or class"),
        ("no_such_module:f", "module 'no_such_module' is not importable from .*; install it, or name its file"),
    ],
)
def test_bad_references(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(spec, **SHAPE, root=folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import torch\n1 / 0\n", r"ZeroDivisionError: division by zero \({file}, line 2\)"),
        ("def f(:\n", r"SyntaxError: .* \({file}, line 1\)"),
        ("x = 1\nimport no_such_thing\n", r"ModuleNotFoundError: No module named 'no_such_thing' \({file}, line 2\)"),
    ],
)
def test_a_failing_import_is_told_in_one_line(folder: Path, text: str, message: str) -> None:
    (folder / "house.py").write_text(text)
    for spec in ("house.py:f", "house:f"):
        with pytest.raises(
            InputError, match="cannot be imported: " + message.replace("{file}", r"house\.py")
        ) as caught:
            build(spec, **SHAPE, root=folder)
        assert "\n" not in str(caught.value)
    assert not any(name.startswith("pliant_user_house") for name in sys.modules)
