"""A method as data: settings, JSON, pickle, identity, and what it says about itself."""

from __future__ import annotations

import dataclasses
import json
import pickle
import pkgutil
import typing

from pliant.core import registry
from pliant.core.errors import SettingError
from pliant.core.fields import hints
from pliant.core.stack import Stack

from ..case import Case
from ..nets import EXAMPLES


def meta_is_consistent(case: Case) -> None:
    """What `meta` names exists: fields, example net, companions, tags; and the class is frozen and keyword-only."""
    meta, cls = case.cls.meta, case.cls
    fields = {field.name for field in dataclasses.fields(cls)}
    for part in ("off", "preserving", "settings"):
        unknown = set(getattr(meta, part) or {}) - fields
        assert not unknown, f"meta.{part} names {sorted(unknown)}, which are no fields"
        cls(**{**meta.settings, **(getattr(meta, part) or {})})
    for part in ("title", "paper", "summary"):
        assert getattr(meta, part).strip(), f"meta.{part} is empty"
    assert meta.example in EXAMPLES, f"meta.example={meta.example!r}; choose from {', '.join(EXAMPLES)}"
    assert set(meta.companions) <= set(registry.names()), f"meta.companions={meta.companions}: not all are registered"
    assert meta.by_site <= set(meta.refuses), f"meta.by_site={set(meta.by_site)} holds tags that are not in refuses"
    if meta.layer is not None:
        # "pliant.nn.BatchNorm1d / 2d / 3d" names a family by its first member.
        pkgutil.resolve_name(meta.layer.partition(" ")[0])
    frozen = cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert frozen and all(field.kw_only for field in dataclasses.fields(cls)), (
        "decorate the class with @dataclass(frozen=True, kw_only=True)"
    )
    assert cls.__dict__.get("meta") is meta, "meta must be the class's own, not inherited from another method"


def round_trips(case: Case) -> None:
    """Method, Stack and Report come back from pickle and JSON, the identity with them; the registry finds the class."""
    assert registry.get(case.method.name) is case.cls, (
        f"the registry finds {registry.get(case.method.name)} under {case.method.name!r}; name the class like its "
        f"file and offer it as an entry point of the group {registry.GROUP}"
    )
    identities = set()
    for one in case.variants():
        method, stack = one.method, one.stack
        told = json.loads(json.dumps(method.to_json()))
        back = registry.method_from_json(told)
        assert back == method and back.identity == method.identity, f"{method!r} comes back from JSON as {back!r}"
        copied = pickle.loads(pickle.dumps(method))
        assert copied == method and copied.identity == method.identity, f"{method!r} is pickled as {copied!r}"
        identities.add(method.identity)
        for again in (Stack.from_json(json.loads(json.dumps(stack.to_json()))), pickle.loads(pickle.dumps(stack))):
            assert again.methods == stack.methods and again.identity == stack.identity, (
                f"{stack!r} came back as {again!r}"
            )
    different = {json.dumps(one.method.to_json()) for one in case.variants()}
    assert len(identities) == len(different), "two different settings have one identity"
    report = case.stack.plan(case.example.net(), case.example.sample())
    assert pickle.loads(pickle.dumps(report)) == report, "the report is changed by pickle"
    assert json.loads(json.dumps(report.to_json()))["order"] == list(report.order), "the report has no JSON form"


class _Foreign:
    """Of a type that no setting has."""


def wrong_settings_are_errors(case: Case) -> None:
    """Unknown settings and values of a wrong type raise SettingError and name the field."""
    fields = [field.name for field in dataclasses.fields(case.cls)]
    unknown = fields[0] + "x" if fields else "no_such_setting"
    _must_refuse(case, unknown, 1)
    for name in fields:
        hint = hints(case.cls)[name]
        takes_text = str in (hint, *typing.get_args(hint))
        for value in (_Foreign(), {"a": 1}, (("nested",),), b"bytes", *(() if takes_text else ("no such choice",))):
            _must_refuse(case, name, value)


def _must_refuse(case: Case, name: str, value: object) -> None:
    what = f"{case.cls.__name__}({name}={value!r})"
    settings = {key: item for key, item in case.method.to_json().items() if key != "method"}
    try:
        case.cls.build({**settings, name: value})
    except SettingError as error:
        assert name in str(error), f"the error for {what} does not name the field: {error}"
    except Exception as error:
        raise AssertionError(f"{what} raises {type(error).__name__} ({error}), not SettingError") from error
    else:
        raise AssertionError(f"{what} is taken without a word")


def a_method_is_no_layer(case: Case) -> None:
    """Calling the method like a layer raises TypeError and names the layer."""
    try:
        case.method(case.example.sample())
    except TypeError as error:
        layer = case.cls.meta.layer
        assert "Stack" in str(error), f"the error does not say where a method goes: {error}"
        assert layer is None or layer in str(error), f"the error does not name the layer {layer}: {error}"
    else:
        raise AssertionError(f"{case.cls.__name__}()(x) does not raise: a method must not define __call__")
