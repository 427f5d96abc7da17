from __future__ import annotations

import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pliant._version import __version__
from pliant.cli import main as package_main
from pliant.cli.main import STOPPED, VERBS
from pliant.core.errors import ContractError, InputError


def test_help_names_every_verb(pliant: Any) -> None:
    for argv in ([], ["--help"], ["-h"]):
        result = pliant(*argv)
        assert result.code == 0
        assert all(re.search(rf"^  {verb} ", result.out, re.M) for verb in VERBS)
    assert pliant("--version").out == f"{__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_takes_json(pliant: Any, verb: str) -> None:
    result = pliant(verb, "--help")
    assert result.code == 0
    assert result.out.startswith(f"usage: pliant {verb}")
    assert "--json" in result.out


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from pliant.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "rich", "jinja2", "plotly", "scipy", "sklearn", "joblib"}
    assert not heavy & {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["cmpare"], "unknown verb 'cmpare': did you mean 'compare'"),
        (["zzzz"], "choose from: card, compare"),
        (["--json", "methods"], "--json stands before the verb"),
        (["compare", "--sed", "3"], "has no option --sed: did you mean '--seeds'"),
        (["compare", "--seed=3"], "has no option --seed: did you mean '--seeds'"),
        (["compare", "--seeds", "many"], "'many' is not a whole number of at least 1"),
        (["compare", "a.toml", "b.toml"], "does not know what to do with 'b.toml'"),
        (["card"], "NAME; see pliant card --help"),
    ],
)
def test_bad_input_is_2_and_names_the_remedy(pliant: Any, argv: list[str], message: str) -> None:
    result = pliant(*argv)
    assert result.code == 2
    assert message in result.err
    assert result.out == ""
    assert "Traceback" not in result.err


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a verb "probe" that does what the test says."""

    def install(execute: Any, **extra: Any) -> None:
        module = SimpleNamespace(__doc__="probe", configure=lambda parser: None, execute=execute, **extra)
        monkeypatch.setitem(sys.modules, "probe_verb", module)
        monkeypatch.setitem(VERBS, "probe", ("probe_verb", "a test"))

    return install


def _raise(error: BaseException) -> Any:
    def execute(args: Namespace, out: object) -> int:
        raise error

    return execute


@pytest.mark.parametrize(("error", "code"), [(InputError("cause; remedy"), 2), (ContractError("cause; remedy"), 1)])
def test_errors_of_ours_are_their_message(pliant: Any, verb: Any, error: Exception, code: int) -> None:
    verb(_raise(error))
    assert pliant("probe") == (code, "", "pliant: cause; remedy\n")


def test_the_unexpected_is_short_and_kept_in_a_file(pliant: Any, verb: Any) -> None:
    verb(_raise(KeyError("lost")))
    result = pliant("probe")
    assert (result.code, result.out) == (1, "")
    assert "unexpected KeyError: 'lost'" in result.err
    path = re.search(r"The traceback is in (\S+);", result.err)
    assert path is not None
    kept = Path(path.group(1))
    assert "raise error" in kept.read_text()
    kept.unlink()


def test_debug_shows_the_traceback(pliant: Any, verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    verb(_raise(KeyError("lost")))
    monkeypatch.setenv("PLIANT_DEBUG", "1")
    result = pliant("probe")
    assert result.code == 1
    assert "Traceback" in result.err


def test_ctrl_c_says_how_to_go_on(pliant: Any, verb: Any) -> None:
    verb(_raise(KeyboardInterrupt()), resume=lambda args, command: f"again: {command}")
    result = pliant("probe", "--json")
    assert (result.code, result.out) == (STOPPED, "")
    assert result.err == "pliant: stopped. again: pliant probe --json\n"
    verb(_raise(KeyboardInterrupt()))
    assert "start again with: pliant probe" in pliant("probe").err


def test_a_reader_that_left_is_no_error(verb: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    verb(_raise(BrokenPipeError()))
    with (tmp_path / "closed").open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert package_main(["probe"]) == 0


def test_the_module_and_the_package_offer_the_same_main() -> None:
    from pliant.cli.main import main

    assert package_main is main
