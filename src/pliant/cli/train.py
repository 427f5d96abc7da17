"""One training run from a recipe. The same command resumes a run that was stopped, bit for bit.

The folder given with --out gets checkpoint.safetensors, record.json and the resolved recipe.toml.
"""

from __future__ import annotations

import contextlib
import json
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pliant.core.errors import InputError, PliantError, nearest

from .output import Output
from .parser import Parser, add_settings, whole

CHECKPOINT = "checkpoint.safetensors"


def configure(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file; its [methods] stack is applied")
    parser.add_argument("--out", default="run/last", metavar="FOLDER", help="the run's folder (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0, "seed"), default=0, metavar="N", help="of weights, order and split")
    parser.add_argument("--test", action="store_true", help="also read the test set, once, at the end")
    parser.add_argument("--arm", metavar="NAME", help="apply this arm of [arms] instead of the [methods] stack")
    add_settings(parser)


def execute(args: Namespace, out: Output) -> int:
    from pliant.train import Progress, Recipe, fit

    recipe = Recipe.load(args.recipe, args.overrides)
    text = recipe.to_toml()
    folder = Path(args.out)
    fresh = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the run's folder {folder} cannot be made ({error}): name another with --out") from error
    checkpoint = folder / CHECKPOINT
    first = os.environ.get("RANK", "0") == "0"
    if first and checkpoint.exists():
        out.say(f"resuming {checkpoint}")
    methods = recipe.methods if args.arm is None else _arm(recipe.arms, args.arm)
    if not methods:
        out.say("no methods: the plain model is trained ([methods] stack is empty; --arm NAME takes one of [arms])")
    try:
        record = fit(
            recipe.task,
            methods,
            seed=args.seed,
            test=args.test,
            checkpoint=checkpoint,
            progress=Progress(metric=recipe.task.metric),
        ).record
    except PliantError:
        if fresh:
            # Refused before anything was written: an empty folder would look like a run.
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    if not first:
        return 0
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    (folder / "record.json").write_text(json.dumps(record.to_json(), indent=1), encoding="utf-8")
    out.data({**record.to_json(), "checkpoint": str(checkpoint)})
    rows = [
        ["status", record.status],
        ["steps", f"{record.steps:,}"],
        [f"best validation {recipe.task.metric}", f"{record.best_valid:.4f}"],
        [f"final validation {recipe.task.metric}", f"{record.final_valid:.4f}"],
    ]
    if record.test_score is not None:
        rows.append([f"test {recipe.task.metric}", f"{record.test_score:.4f}"])
    rows += [["trainable parameters", f"{record.parameters:,}"], ["seconds", f"{record.seconds:.1f}"]]
    out.table(["run", str(folder)], rows)
    if record.status != "ok":
        out.say(f"the run diverged at learning rate {record.lr:g}: lower it with --set train.lr=...")
        return 1
    return 0


def _arm(arms: Mapping[str, Any], name: str) -> Any:
    if name not in arms:
        raise InputError(f"the recipe has no arm {name!r}: {nearest(name, arms)}")
    return arms[name]


def resume(args: Namespace, command: str) -> str:
    """What Ctrl-C says."""
    return f"The run is kept in {args.out}; continue with: {command}"
