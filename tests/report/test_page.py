from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pliant import report
from pliant.core.errors import InputError

Build = Callable[..., dict[str, Any]]
SECTIONS = ["verdicts", "curves", "seeds", "cost", "changes", "tuning", "recipe", "reading"]
HOSTILE = (
    "<script>alert(1)</script>",
    "%{x}<b>bold</b>",
    "\"'><img src=x onerror=alert(1)>",
    "</script><!--",
)


class Page(HTMLParser):
    """What a browser would see: elements with attributes, text outside scripts, scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: dict[str, str] = {}
        self._inside: str | None = None
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.words.append(data)
        else:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data

    @property
    def payload(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts["payload"])
        return found


@pytest.fixture(scope="module")
def page() -> Callable[[dict[str, Any]], Page]:
    return lambda summary: Page(report.render(summary))


def test_sections_come_in_order(summary: Build, page: Callable[..., Page]) -> None:
    found = page(summary())
    assert [a["id"] for tag, a in found.elements if tag == "section"] == SECTIONS
    assert [a["href"] for tag, a in found.elements if tag == "a"] == ["#answer", *(f"#{name}" for name in SECTIONS)]


def test_the_answer_names_every_arm_with_its_verdict(summary: Build, page: Callable[..., Page]) -> None:
    text = page(summary()).text
    assert (
        "Compared with base, bn (−150 steps) helps; sd (+120 steps) hurts; elu makes no difference; "
        "there is not enough evidence about wn." in text
    )


def test_one_arm_is_answered_with_its_interval(summary: Build, page: Callable[..., Page]) -> None:
    assert "bn helps: −150 steps against base (95 % interval −185 to −115)." in page(summary(arms=("bn",))).text


def test_many_arms_are_counted_not_listed(summary: Build, page: Callable[..., Page]) -> None:
    text = page(summary(arms=tuple(f"m{i}" for i in range(24)))).text
    assert "m0 (−150 steps), m4 (−150 steps), m8 (−150 steps) and 3 others help" in text
    assert "6 arms make no difference; there is not enough evidence about 6 arms." in text


def test_the_table_holds_effect_interval_p_and_sentence(summary: Build, page: Callable[..., Page]) -> None:
    made = summary()
    text = page(made).text
    for verdict in made["verdicts"]:
        assert verdict["sentence"] in text
    for part in ("−150 steps", "−185 to −115", "0.031", "0.008 alone"):
        assert part in text


def test_numbers_of_every_figure_are_also_text(summary: Build, page: Callable[..., Page]) -> None:
    made = summary()
    text = page(made).text
    assert "not reached" in text
    assert "4,938" in text  # parameters
    assert "1.12×" in text  # step time ratio
    assert "BatchNorm1d(64)" in text  # surgery
    assert "rate 0.1, on the grid's edge" in text
    assert "2 of 10 diverged" in text
    assert made["plan"]["hash"] in text
    assert 'methods = [{ method = "batch_norm" }]' in text
    assert "Times come from a shared machine." in text


def test_every_figure_has_a_place_and_words(summary: Build, page: Callable[..., Page]) -> None:
    found = page(summary())
    places = {a["data-figure"]: a for _, a in found.elements if "data-figure" in a}
    assert set(places) == set(found.payload["figures"])
    for place in places.values():
        assert place["role"] == "img"
        assert place["aria-label"]


def test_nothing_is_fetched(summary: Build, page: Callable[..., Page]) -> None:
    text = report.render(summary())
    found = page(summary())
    assert not re.findall(r"https?:|//[a-z]+\.|@import", text)
    assert not re.findall(r"url\(", text)
    assert not [a for _, a in found.elements if "src" in a]
    assert all(str(a["href"]).startswith("#") for _, a in found.elements if "href" in a)
    policy = next(a["content"] for _, a in found.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_plotly_is_inside_once_and_whole(summary: Build, page: Callable[..., Page]) -> None:
    from plotly.offline import get_plotlyjs

    packed = page(summary()).scripts["plotly"]
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()
    assert report.render(summary()).count(packed[:200]) == 1


def test_the_file_stays_small(summary: Build, tmp_path: Path) -> None:
    made = summary(arms=tuple(f"method_{i}" for i in range(20)), seeds=30)
    assert report.write(made, tmp_path / "r.html").stat().st_size < 6_000_000


def test_hostile_names_stay_text(summary: Build, page: Callable[..., Page]) -> None:
    made = summary(arms=HOSTILE)
    made["title"] = made["recipe"] = made["notes"][0] = made["target"]["source"] = HOSTILE[2]
    made["arms"][HOSTILE[0]]["changes"] = HOSTILE[0]
    made["environment"]["cpu"] = HOSTILE[0]
    made["plan"]["unit"] = "<i>steps</i>"
    found, plain = page(made), page(summary())
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert not [a for _, a in found.elements if any(name.startswith("on") for name in a)]
    assert HOSTILE[0] in found.text
    # plotly reads tags in its texts, so they must be escaped once more
    for figure in found.payload["figures"].values():
        shown = json.dumps([figure["layout"], [t.get("hovertext") for t in figure["data"]]])
        assert not re.search(r"<(?!br>|b>|/b>)", shown)
        assert "hovertemplate" not in json.dumps(figure)


def test_hover_texts_are_not_bold_by_name(summary: Build, page: Callable[..., Page]) -> None:
    found = page(summary(arms=("<b>x</b>",)))
    assert "&lt;b&gt;x" in json.dumps(found.payload["figures"]["pair-1"])


def test_an_unfinished_study_says_so(summary: Build, page: Callable[..., Page]) -> None:
    made = summary()
    made |= {"complete": False, "verdicts": [], "descriptive": []}
    made["arms"] = {"base": made["arms"]["base"]}
    made["arms"]["base"] |= {"values": [300.0, None], "timing": None, "cost": {"tuning_steps": 100}}
    found = page(made)
    assert "This study is not finished." in found.text
    assert "No verdict yet" in found.text
    assert "not measured in this study" in found.text
    assert [a["data-toggle"] for _, a in found.elements if "data-toggle" in a] == ["0"]
    assert "This study is not finished." not in page(summary()).text


def test_values_of_unknown_seeds_are_not_paired(summary: Build, page: Callable[..., Page]) -> None:
    made = summary() | {"complete": False, "verdicts": []}
    made["arms"]["bn"]["values"] = [11.0, 12.0]
    found = page(made)
    assert {name for name in found.payload["figures"] if name.startswith("pair")} == {"pair-2", "pair-3", "pair-4"}
    cells = [row.split() for row in re.findall(r"<tr><th scope=\"row\">\d</th>.*", report.render(made))]
    assert len(cells) == len(made["plan"]["seeds"])
    assert not [row for row in cells if "11</td>" in " ".join(row)]


def test_a_study_without_any_run_is_still_a_page(summary: Build, page: Callable[..., Page]) -> None:
    made = summary() | {"complete": False, "verdicts": [], "arms": {}, "descriptive": [], "notes": []}
    made["target"] = {"value": None, "source": ""}
    made["environment"] = {}
    found = page(made)
    assert [a["id"] for tag, a in found.elements if tag == "section"] == SECTIONS
    assert found.payload["figures"] == {}


def test_fractions_get_their_own_axis(summary: Build, page: Callable[..., Page]) -> None:
    made = summary()
    made["verdicts"][0] |= {"test": "mcnemar", "unit": "fraction of runs", "higher_is_better": True, "difference": 0.5}
    made["verdicts"][0] |= {"ci95": [0.1, 0.9], "ci90": [0.2, 0.8]}
    forests = {k: v for k, v in page(made).payload["figures"].items() if k.startswith("forest")}
    assert len(forests) == 2
    fraction = forests["forest-0"]["layout"]
    assert "fraction of runs" in fraction["xaxis"]["title"]["text"]
    assert [note["text"] for note in fraction["annotations"]] == ["← worse", "better →"]
    assert len(fraction["shapes"]) == 1  # no margin was planned for fractions


def test_write_makes_the_folder_and_replaces_the_file(summary: Build, tmp_path: Path) -> None:
    path = report.write(summary(), tmp_path / "new" / "study.html")
    first = path.read_text(encoding="utf-8")
    assert report.write(summary(), str(path)) == path
    assert path.read_text(encoding="utf-8") == first
    assert [p.name for p in path.parent.iterdir()] == ["study.html"]


def test_a_failed_report_leaves_the_old_one(summary: Build, tmp_path: Path) -> None:
    path = report.write(summary(), tmp_path / "study.html")
    before = path.read_bytes()
    with pytest.raises(InputError, match="lacks arms"):
        report.write({"plan": {}, "verdicts": []}, path)
    assert path.read_bytes() == before


def test_other_schemas_are_refused(summary: Build) -> None:
    with pytest.raises(InputError, match="schema 2"):
        report.render(summary() | {"schema": 2})
