"""What the documents show works: docstring examples, example files, and the code blocks of README and guide."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pliant

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(pliant.__path__, "pliant.") if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(path, tmp_path):
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)


def test_the_readme_python_example_runs(tmp_path):
    (code,) = blocks("README.md", "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


GUIDE_NET = """
import torch

torch.manual_seed(0)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.ReLU(), torch.nn.Linear(6, 6))

    def forward(self, x):
        return x + self.body(x)


def build():
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), Block(), torch.nn.Linear(6, 3))


net, n, x = build(), 8, torch.randn(10, 4)
loader = [(torch.randn(10, 4), torch.arange(10) % 3) for _ in range(n)]
"""


def test_the_guide_python_blocks_run_one_after_the_other(tmp_path):
    pytest.importorskip("onnxruntime")
    start, *others = blocks("docs/guide.md", "python")
    (loop,) = re.findall(r"For `x, y` of your loader: `(.*)`", (ROOT / "docs/guide.md").read_text())
    train = f"for inputs, y in loader:\n    {loop.replace('net(x)', 'net(inputs)')}\n"
    code = "\n".join([GUIDE_NET, start, train, *others, train])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "net.onnx").is_file() and (tmp_path / "net.safetensors").is_file()


@pytest.mark.parametrize("document", ["README.md", "docs/guide.md"])
def test_recipes_in_documents_are_valid(document, tmp_path):
    for index, text in enumerate(blocks(document, "toml")):
        tomllib.loads(text)
        path = tmp_path / f"{index}.toml"
        path.write_text(text)
        pliant.Recipe.load(path)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/guide.md", "docs/design.md"])
def test_links_lead_somewhere(document):
    home = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / document).read_text()):
        if "://" not in target:
            assert (home / target).exists(), f"{document} links to {target}, which does not exist"
