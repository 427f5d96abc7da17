"""Finds the verb, runs it, and turns what went wrong into a message and an exit code.

0: fine; 1: failed; 2: bad input; 130: stopped with Ctrl-C. Nothing heavy is imported before a verb is known.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any

from pliant._version import __version__
from pliant.core.errors import InputError, PliantError, nearest

from .output import Output
from .parser import Parser

VERBS = {
    "compare": ("pliant.cli.compare", "which methods help this model on this data: paired runs, verdicts, a report"),
    "train": ("pliant.cli.train", "one training run from a recipe; resumes after a crash"),
    "doctor": (
        "pliant.cli.doctor",
        "dry run of every method on a model: what would change, where, and why not elsewhere",
    ),
    "methods": ("pliant.cli.methods", "the methods, their papers, and what they cannot be combined with"),
    "card": ("pliant.cli.card", "one method's card: what it does, when to use it, its settings"),
    "export": ("pliant.cli.export", "write a trained run's finished model as .pt2 or .onnx, checked"),
    "report": ("pliant.cli.report", "write the HTML report of a stored study"),
}
"""Verb -> its module, which has `configure(parser)` and `execute(args, out) -> int`, and its line in the help."""

STOPPED = 130
DEBUG = "PLIANT_DEBUG"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. argv: without the program's name, default the process's own."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # A terminal that cannot show a character must not cost the user the whole answer.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        return _dispatch(argv)
    except SystemExit as end:  # argparse's --help
        return end.code if isinstance(end.code, int) else 0
    except PliantError as error:
        _complain(str(error))
        return error.exit_code
    except BrokenPipeError:
        # The reader (head, less) has seen enough; what is still buffered must not raise at exit either.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _crashed(error)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(__version__)
        return 0
    verb = argv[0]
    if verb.startswith("-"):
        raise InputError(f"{verb} stands before the verb: write pliant VERB {verb} ...; see pliant --help")
    if verb not in VERBS:
        raise InputError(f"unknown verb {verb!r}: {nearest(verb, VERBS)}")
    module = importlib.import_module(VERBS[verb][0])
    parser = Parser(prog=f"pliant {verb}", description=module.__doc__)
    module.configure(parser)
    parser.add_argument("--json", action="store_true", help="print JSON on stdout and nothing else there")
    args = parser.parse(argv[1:])
    out = Output(as_json=args.json)
    try:
        return int(module.execute(args, out))
    except KeyboardInterrupt:
        _complain("stopped. " + _how_to_resume(module, args, argv))
        return STOPPED


def _how_to_resume(module: Any, args: Any, argv: list[str]) -> str:
    command = f"pliant {shlex.join(argv)}"
    if not hasattr(module, "resume"):
        return f"Nothing was written; start again with: {command}"
    return str(module.resume(args, command))


def _complain(text: str) -> None:
    print(f"pliant: {text}", file=sys.stderr)


def _crashed(error: Exception) -> int:
    if os.environ.get(DEBUG):
        traceback.print_exc()
        return 1
    with tempfile.NamedTemporaryFile("w", prefix="pliant-", suffix=".txt", delete=False, encoding="utf-8") as file:
        traceback.print_exc(file=file)
    _complain(
        f"unexpected {type(error).__name__}: {error}\n"
        f"The traceback is in {file.name}; {DEBUG}=1 shows it here. If the cause is in pliant, please report it."
    )
    return 1


def usage() -> str:
    """The text of `pliant --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items())
    return f"""\
pliant {__version__}: make neural networks take training well and run cheaply, and prove it

usage: pliant VERB ...          pliant VERB --help

{verbs}

every verb takes --json; verbs that read a recipe take --set key.key=value, as often as needed
exit codes: 0 fine, 1 failed, 2 bad input, 130 stopped with Ctrl-C

  pliant compare                             an example study: which normalisation helps on digits?
  pliant compare recipe.toml --seeds 12 -o study.html
  pliant doctor mynet.py:build --input-shape 3,32,32
  pliant card weight_norm"""
