"""Every method's card: its code runs, its recipe loads, its table is the dataclass, and nothing is left out."""

from __future__ import annotations

import ast
import dataclasses
import re
import tomllib

import pytest

from pliant.core import registry
from pliant.core.method import Method
from pliant.core.stack import Stack

NAMES = registry.names()
SECTIONS = [
    "For the user",
    "The formula",
    "Usage",
    "Settings",
    "What it edits",
    "Cost",
    "Together with others",
    "Traps",
    "Published figures",
    "Measured",
    "References",
]


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", registry.card(name), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_python_blocks_run(name: str):
    found = blocks(name, "python")
    assert found
    for code in found:
        exec(compile(code, f"{name}.md", "exec"), {})


@pytest.mark.parametrize("name", NAMES)
def test_toml_blocks_hold_stacks_with_the_method(name: str):
    found = blocks(name, "toml")
    assert found
    for text in found:
        stack = Stack.from_json(tomllib.loads(text)["methods"]["stack"])
        assert name in [method.name for method in stack.methods]


@pytest.mark.parametrize("name", NAMES)
def test_the_table_lists_every_setting_with_its_default(name: str):
    kind: type[Method] = registry.get(name)
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.+) \|$", registry.card(name), flags=re.MULTILINE)
    told = {field: ast.literal_eval(default) for field, default, _ in rows}
    assert told == {field.name: field.default for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_complete_and_short(name: str):
    text, meta = registry.card(name), registry.get(name).meta
    lines = text.splitlines()
    assert lines[0] == f"# {meta.title} (`{name}`)" and len(lines) < 120
    headings = [line[3:] for line in lines if line.startswith("## ")]
    for section in SECTIONS:
        assert any(heading.startswith(section) for heading in headings), section
    (number,) = re.findall(r"arXiv (\d{4}\.\d{5})", meta.paper)
    assert number in text


@pytest.mark.parametrize("name", NAMES)
def test_conflicts_and_layers_are_named(name: str):
    text, meta = registry.card(name), registry.get(name).meta
    together = text.partition("## Together with others")[2].partition("\n## ")[0]
    for other in NAMES:
        tags = registry.get(other).meta.tags & (meta.refuses.keys() | meta.notes.keys())
        assert other == name or not tags or other in together
    if meta.layer is not None:
        assert meta.layer.split(" ")[0] in text.partition("## References")[2]
