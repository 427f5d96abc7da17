"""Writes a trained run's model for others to run: statistics set, norms folded, checked against eval mode.

The file is read back and run; it is kept only if its outputs agree with the model's.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from pliant.core.errors import InputError

from .output import Output
from .parser import Parser
from .train import CHECKPOINT


def configure(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder (pliant train --out), or its checkpoint")
    parser.add_argument("--to", choices=("pt2", "onnx"), default="pt2", help="the format (default: %(default)s)")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write (default: net.pt2 or net.onnx in RUN)")


def execute(args: Namespace, out: Output) -> int:
    run = Path(args.run)
    checkpoint = run / CHECKPOINT if run.is_dir() else run
    if not checkpoint.is_file():
        raise InputError(f"{args.run} holds no {CHECKPOINT}: train first with pliant train RECIPE --out {args.run}")

    from pliant.core.report import trainable
    from pliant.ship import export
    from pliant.train import reopen

    trained = reopen(checkpoint)
    lean = trained.applied.finalize()
    target = Path(args.output) if args.output else checkpoint.parent / f"net.{args.to}"
    export(lean, target, sample=trained.applied.sample)
    size, before, after = target.stat().st_size, trainable(trained.model), trainable(lean)
    out.data({"path": str(target), "bytes": size, "parameters": {"trained": before, "finished": after}})
    out.table(
        ["export", str(target)],
        [
            ["outputs", "agree with eval mode"],
            ["parameters, trained and finished", f"{before:,} and {after:,}"],
            ["bytes", f"{size:,}"],
        ],
    )
    return 0
