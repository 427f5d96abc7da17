"""Methods are found by file and by entry point; every wrong name meets the right one."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

import pliant
import pliant.methods
from pliant.core import registry
from pliant.core.errors import InputError, SettingError
from pliant.core.method import Meta, Method, Phase

FILES = {p.stem for p in Path(pliant.methods.__path__[0]).glob("*.py")} - {"__init__"}


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[importlib.metadata.EntryPoint]]:
    """Entry points that other packages seem to offer; the registry looks anew before and after."""
    points: list[importlib.metadata.EntryPoint] = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == registry.GROUP else [])
    registry._modules.cache_clear()
    registry.get.cache_clear()
    yield points
    monkeypatch.undo()
    registry._modules.cache_clear()
    registry.get.cache_clear()


def point(name: str, module: str) -> importlib.metadata.EntryPoint:
    return importlib.metadata.EntryPoint(name=name, value=f"{module}:Anything", group=registry.GROUP)


def test_the_methods_are_the_files():
    assert set(registry.names()) == FILES and registry.names() == sorted(FILES)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_defines_the_class_of_its_name_and_has_a_card(name: str):
    kind = registry.get(name)
    assert kind().name == name
    assert registry.get(kind.__name__) is kind and getattr(pliant, kind.__name__) is kind
    assert registry.card(name).startswith("# ")


def test_case_and_underscores_do_not_count():
    assert registry.get("BNScaleInit") is registry.get("bn_scale_init") is registry.get("bnscaleinit")


def test_a_wrong_name_meets_the_nearest():
    with pytest.raises(InputError, match="unknown method 'bath_norm': did you mean 'batch_norm'"):
        registry.get("bath_norm")


def test_a_method_may_be_written_as_its_bare_name():
    assert registry.method_from_json("batch_norm") == pliant.BatchNorm()
    assert registry.methods_from_json(["batch_norm", {"method": "weight_norm", "init_scale": 2.0}]) == [
        pliant.BatchNorm(),
        pliant.WeightNorm(init_scale=2.0),
    ]


def test_a_table_without_the_method_key_says_how_to_write_one():
    with pytest.raises(SettingError, match=r"\{method = \"batch_norm\", ...\}; found the keys \['eps'\]"):
        registry.method_from_json({"eps": 1e-5})


def test_another_package_can_offer_a_method(offered: list, monkeypatch: pytest.MonkeyPatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class FooNorm(Method):
        meta: ClassVar[Meta] = Meta(title="Foo", paper="none", summary="foo", phase=Phase.VALUES)

    module = ModuleType("other_package_foo")
    module.FooNorm = FooNorm  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "other_package_foo", module)
    offered.append(point("foo_norm", "other_package_foo"))
    assert registry.get("FooNorm") is FooNorm and "foo_norm" in registry.names()
    assert "FooNorm" in dir(pliant)


def test_an_entry_point_may_not_take_a_name_of_ours(offered: list):
    offered.append(point("batch_norm", "thief"))
    with pytest.raises(InputError, match=r"pliant\.methods:batch_norm \(thief:Anything\) takes a name .* rename one"):
        registry.names()


def test_two_packages_may_not_offer_one_name(offered: list):
    offered += [point("foo", "one"), point("foo", "two")]
    with pytest.raises(InputError, match=r"two:Anything\) takes a name that is already one"):
        registry.names()


def test_a_module_without_its_class_is_refused(offered: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "other_package_empty", ModuleType("other_package_empty"))
    offered.append(point("empty", "other_package_empty"))
    with pytest.raises(InputError, match="other_package_empty defines no Method class named like its file"):
        registry.get("empty")


def test_dir_lists_every_method_and_the_public_names():
    listed = dir(pliant)
    assert {registry.get(name).__name__ for name in registry.names()} <= set(listed)
    assert {"Stack", "bind", "compare", "nn", "functional", "__version__"} <= set(listed)
    assert listed == sorted(set(listed))


@pytest.mark.parametrize("name", [name for name in pliant.__all__ if name not in ("testing", "cli")])
def test_every_public_name_loads(name: str):
    assert getattr(pliant, name) is not None


@pytest.mark.parametrize(("wrong", "right"), [("BathNorm", "batch_norm"), ("Batchnorm", "BatchNorm")])
def test_a_misspelt_attribute_names_the_right_one(wrong: str, right: str):
    with pytest.raises(AttributeError, match=re.escape(right)):
        getattr(pliant, wrong)


def test_import_is_light():
    heavy = "scipy sklearn joblib lightning_fabric rich jinja2 plotly psutil PIL torch._dynamo torch._inductor"
    code = f"""
import sys
import torch
before = set(sys.modules)
import pliant
pliant.Stack(pliant.BatchNorm(), pliant.WeightNorm(), pliant.StochasticDepth())
print([name for name in {heavy.split()!r} if name in set(sys.modules) - before])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
