"""argparse whose errors are InputErrors that name the nearest right option, and the arguments that verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from pliant.core.errors import InputError, nearest


class Parser(argparse.ArgumentParser):
    """One verb's arguments. Options are never abbreviated: a new option must not change what an old command means."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments; what is left over is an error with the nearest option."""
        args, rest = self.parse_known_args(argv)
        for extra in rest:
            if extra.startswith("-") and extra != "-":
                name = extra.partition("=")[0]
                raise InputError(f"{self.prog} has no option {name}: {nearest(name, self._option_string_actions)}")
            raise InputError(f"{self.prog} does not know what to do with {extra!r}; see {self.prog} --help")
        return args


def add_settings(parser: Parser) -> None:
    """The repeated --set option of verbs that read a recipe."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a value of the recipe, such as --set train.steps=300 (repeat for more)",
    )


def whole(least: int, what: str) -> Any:
    """An argparse type: a whole number of at least `least`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least} ({what})")
        return value

    return convert
