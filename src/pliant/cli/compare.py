"""Compare methods on one model and data set: plan, tune every arm alike, run paired seeds, judge, report.

Without a recipe the embedded example runs: which normalisation helps a sigmoid net on digits? Finished runs are kept
in the store, so the same command continues a study that was stopped. Names in --arms are arms of the recipe or methods.
"""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pliant.core.errors import InputError, nearest

from . import report
from .output import Output
from .parser import Parser, add_settings, whole
from .progress import StudyProgress

if TYPE_CHECKING:
    from pliant.study import Study
    from pliant.train import Recipe

STYLES = {"helps": "bold green", "hurts": "bold red", "no difference": "dim", "not enough evidence": "yellow"}


def configure(parser: Parser) -> None:
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a TOML file (default: the embedded example)")
    parser.add_argument("--arms", metavar="A,B", help="compare only these arms, or methods, with the base")
    parser.add_argument("--seeds", type=whole(1, "seeds"), metavar="N", help="paired seeds per arm")
    parser.add_argument("--workers", type=whole(1, "workers"), metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--store", default="run/study.db", metavar="FILE", help="where runs are kept (default: %(default)s)"
    )
    parser.add_argument("--extend", type=whole(1, "seeds"), metavar="N", help="add N seeds as the next planned look")
    parser.add_argument("-o", "--out", metavar="FILE", help="the report (default: beside the store, .html)")
    add_settings(parser)


def execute(args: Namespace, out: Output) -> int:
    from pliant.study.runner import RunsFailed

    report.check_place(args.out, args.store)
    study = _study(args)
    plan = study.plan
    out.say(
        f"{study.title}\nplan {plan.hash[:12]}: {len(plan.arms)} arms, {len(study.seeds)} paired seeds, "
        f"tuned on {len(plan.rates)} rates and {len(plan.tune_seeds)} other seeds; runs are kept in {args.store}"
    )
    try:
        with StudyProgress(len(plan.arms) * len(study.seeds)) as progress:
            study.resume(progress)
            if args.extend:
                study.extend(args.extend, progress)
    except RunsFailed:
        out.say(f"the report of the finished runs: {report.write(study.summary(), args.out, args.store)}")
        raise
    if not study.timing:
        out.say("timing a step of every arm, one at a time")
        study.time()
    summary = study.summary()
    path = report.write(summary, args.out, args.store)
    out.data({**summary, "report": str(path)})
    _tell(summary, out)
    out.line(str(path))
    return 0


def resume(args: Namespace, command: str) -> str:
    """What Ctrl-C says."""
    if args.extend:
        command = command.replace(f" --extend {args.extend}", "").replace(f" --extend={args.extend}", "")
    return f"Finished runs are kept in {args.store}; continue with: {command}"


def _study(args: Namespace) -> Study:
    from pliant.study import Study, make_plan
    from pliant.study.plan import differences
    from pliant.study.store import Store
    from pliant.train import Recipe

    overrides = [*args.overrides, *([f"study.seeds={args.seeds}"] if args.seeds else [])]
    recipe = Recipe.default(overrides) if args.recipe is None else Recipe.load(args.recipe, overrides)
    arms = _arms(recipe, args.arms)
    plan = make_plan(recipe.task, arms, **recipe.study.arguments())
    facts = {"title": recipe.title, "recipe": _recipe_text(recipe, arms)}
    path = Path(args.store)
    path.parent.mkdir(parents=True, exist_ok=True)
    store = Store(path)
    if store.fact("plan") is not None and store.plan().hash != plan.hash:
        raise InputError(
            f"{path} holds a study with another plan ({'; '.join(differences(store.plan(), plan))}). A plan is fixed "
            "before its runs: name another file with --store, or repeat the stored plan with --extend N for more seeds"
        )
    return Study(plan, recipe.task, store, workers=args.workers, facts=facts)


def _arms(recipe: Recipe, chosen: str | None) -> dict[str, Any]:
    """The recipe's arms, or the base and the chosen ones: arms of the recipe, else methods with their defaults."""
    from pliant.core import registry

    base = recipe.study.base
    arms: dict[str, Any] = {base: (), **recipe.arms}
    if chosen is None:
        return arms
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    picked = {base: arms[base]}
    for name in names:
        if name in arms:
            picked[name] = arms[name]
        elif name in registry.names():
            picked[name] = (registry.get(name)(),)
        else:
            raise InputError(f"--arms: no arm or method {name!r}: {nearest(name, [*arms, *registry.names()])}")
    return picked


def _recipe_text(recipe: Recipe, arms: dict[str, Any]) -> str:
    return dataclasses.replace(recipe, arms=arms).to_toml()


def _tell(summary: dict[str, Any], out: Output) -> None:
    from pliant.report import words

    out.table(
        ["arm", "verdict", "difference", "95 % interval", "p (Holm)", "pairs"],
        [
            [
                verdict["arm"],
                verdict["verdict"],
                f"{words.signed(verdict['difference'], verdict['unit'])} {verdict['unit']}",
                words.interval(verdict["ci95"], verdict["unit"]),
                words.probability(verdict["p_holm"]),
                str(verdict["pairs"]),
            ]
            for verdict in summary["verdicts"]
        ],
        STYLES,
    )
    out.line()
    for verdict in summary["verdicts"]:
        out.line(verdict["sentence"])
    for note in summary["notes"]:
        out.line(f"note: {note}")
    out.line()
