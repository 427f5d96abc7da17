"""Dry run of every method on a model: what would change, where, and why not elsewhere. Changes nothing.

MODEL is a name (mlp, cnn, resnet20), file.py:factory or package.module:factory. The exit code is 1 when the model
cannot run or train on such an input, or a method breaks on it.
"""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace

from .diagnosis import Diagnosis, diagnose
from .output import Output
from .parser import Parser, whole

STYLES = {"applies": "bold green", "no match": "dim", "refused": "yellow", "broken": "bold red"}
SIGNS = {"refused": "x", "note": "n"}


def configure(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model's name, or file.py:factory")
    parser.add_argument(
        "--input-shape", type=_shape, default=(1, 28, 28), metavar="C,H,W", help="of one example (default: 1,28,28)"
    )
    parser.add_argument("--classes", type=whole(1, "classes"), default=10, metavar="N", help="default: %(default)s")


def execute(args: Namespace, out: Output) -> int:
    found = diagnose(args.model, args.input_shape, args.classes)
    out.data(found.to_json())
    _tell(found, out)
    return 1 if found.broken else 0


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ArgumentTypeError(f"{text!r} is no shape: expected whole numbers such as 3,32,32")
    return shape


def _tell(found: Diagnosis, out: Output) -> None:
    out.heading(f"{found.model} on inputs of shape {'×'.join(map(str, found.input_shape))}")
    out.table(["check", "found"], [[name, told] for name, told in found.facts.items()])
    for fault in found.faults:
        out.line(f"broken: {fault}")
    if found.methods:
        out.heading("methods, each alone with its default settings")
        rows = [[m.name, m.state, m.brief] for m in found.methods]
        out.table(["method", "", "what would happen"], rows, STYLES)
        for method in found.methods:
            out.heading(f"{method.name}: {method.state}")
            for line in method.lines:
                out.line(f"  {line}")
    fitting = [m.name for m in found.methods if m.state == "applies"]
    if len(fitting) > 1:
        out.heading("together: x cannot be combined, n can, with a note below")
        numbered = [f"{index} {name}" for index, name in enumerate(fitting, 1)]
        rows = [
            [label, *(SIGNS.get(found.kind(one, other), "·") if one != other else "" for other in fitting)]
            for label, one in zip(numbered, fitting, strict=True)
        ]
        out.table(["method", *(str(i) for i in range(1, len(fitting) + 1))], rows, {"x": "bold red", "n": "yellow"})
        for pair in found.pairs:
            out.line(f"{pair['first']} with {pair['second']} ({pair['kind']}): {pair['reason']}")
    out.heading("computing with")
    out.table(["what", "found"], [[name, told] for name, told in found.backend.items()])
