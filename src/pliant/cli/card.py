"""One method's card: what it does, when to reach for it, its settings, what is known about it."""

from __future__ import annotations

from argparse import Namespace

from .output import Output
from .parser import Parser


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="a method's name, as `pliant methods` lists it")


def execute(args: Namespace, out: Output) -> int:
    from pliant.core import registry

    method = registry.get(args.name)
    name = method.__module__.rpartition(".")[2]
    text = registry.card(name)
    meta = method.meta
    out.data({"name": name, "title": meta.title, "paper": meta.paper, "summary": meta.summary, "card": text})
    out.markdown(text)
    return 0
