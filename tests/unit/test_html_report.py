"""The HTML report: well-formed, self-contained, safe against names, and the same every time."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from search.reports.html import Bits, html
from search.reports.markdown import as_json, markdown, sure
from search.request import SearchResult
from tests.reported import found_by_search, judged

HOSTILE = """<script src="http://evil.example/x.js">alert('1')</script>&amp; url(#m1) $x$ \u4f60"""
_VOID = {"meta", "br", "hr", "img", "link", "input"}


def _bits(found: SearchResult, *, activation: int = 8) -> Bits:
    layers = {f"conv_{index}": (2 + index, activation) for index in range(0, 6, 2)}
    return {found.kept[0].candidate.name: layers, "no such plan": layers}


class _Page(HTMLParser):
    """Elements of a page, what they hold in attributes, and whether they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append((self.open[-1] if self.open else "", data.strip()))

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attrs[name] for each, attrs in self.tags if each == tag and name in attrs]

    def texts(self, tag: str) -> list[str]:
        return [text for each, text in self.text if each == tag]

    def count(self, tag: str) -> int:
        return sum(each == tag for each, _ in self.tags)


@pytest.fixture(scope="module")
def page() -> _Page:
    found = found_by_search()
    return _Page(html(found, _bits(found)))


@pytest.fixture(scope="module")
def hostile() -> _Page:
    found = found_by_search(HOSTILE, HOSTILE)
    return _Page(html(found, {found.kept[0].candidate.name: {HOSTILE: (4, 8)}}))


def test_every_tag_is_closed(page: _Page, hostile: _Page) -> None:
    assert page.open == hostile.open == []


def test_nothing_is_loaded(page: _Page, hostile: _Page) -> None:
    for each in (page, hostile):
        assert not {"script", "link", "img", "iframe", "image"} & {tag for tag, _ in each.tags}
        for _, attrs in each.tags:
            for name, value in attrs.items():
                if name in {"src", "href", "xlink:href"}:
                    assert value.startswith("#")
                if not name.startswith(("aria-", "xmlns")):
                    assert "://" not in value
                    assert all(url.startswith("#") for url in re.findall(r"url\((.*?)\)", value))
        assert all("url(" not in css and "@import" not in css for css in each.texts("style"))


def test_names_come_through_as_they_are_written(hostile: _Page) -> None:
    name = f"{HOSTILE} searched context"
    assert hostile.texts("h1") == [f"tiny: {name}"]
    assert hostile.texts("strong") == [name]
    assert f"{name} (chosen)" in hostile.texts("td")
    shown = [text for text in hostile.texts("text") if text.startswith("<script src=")]
    assert any(text.endswith("searched context") for text in shown)


def test_ids_are_unique_and_every_reference_has_one(page: _Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    used = {href.removeprefix("#") for href in page.attributes("use", "xlink:href")}
    for _, attrs in page.tags:
        used |= set(re.findall(r"url\(#(.*?)\)", " ".join(attrs.values())))
    assert used
    assert used <= set(ids)


def test_the_same_search_gives_the_same_bytes() -> None:
    one, other = found_by_search(), found_by_search()
    assert html(one, _bits(one)) == html(other, _bits(other))


def test_a_row_for_each_plan_and_one_of_them_chosen(page: _Page) -> None:
    assert page.count("tr") == 1 + 3
    assert page.attributes("tr", "class") == ["chosen"]
    assert page.texts("td")[:7] == [
        "conv_8 searched context (chosen)", "split", "96.9", "5,300", "2.50", "44.1", "0.9"
    ]  # fmt: skip


def test_it_says_what_plans_were_judged_on_and_how_surely() -> None:
    found = found_by_search()
    kept = (replace(found.kept[0], most_lost=2.25, judged_on=1), *found.kept[1:])
    found = replace(found, kept=kept, measured=kept, also_fitted=("a.jpg",))
    page = _Page(html(found))
    assert page.texts("th")[-1] == "at most (90 %)"
    assert page.texts("td")[7] == "2.2"
    judged = next(text for text in page.texts("p") if text.startswith("Judged on"))
    assert judged.startswith("Judged on 1 held-out calibration pictures. Everything is fitted to 8")
    assert "--evaluation" in judged
    assert any("are calibration pictures, too, e.g. a.jpg" in text for text in page.texts("p"))
    text = markdown(found)
    assert judged in text
    assert "**Warning:** 1 of 1 evaluation pictures" in text
    told = as_json(found)
    assert (told["judged_by"], told["also_fitted"], told["confidence"]) == (
        "held-out", ["a.jpg"], 0.9
    )  # fmt: skip
    assert [c["accuracy_drop_upper"] for c in told["candidates"]][:1] == [2.25]
    assert "at most 2.2 (90 %), on 1 held-out" in sure(found)


def test_plans_that_too_few_pictures_cannot_judge_are_told_with_how_many_would() -> None:
    found = found_by_search()
    unsure = replace(found.measured[-1], accuracy=44.0, most_lost=5.0, judged_on=16)
    text = markdown(replace(found, measured=(*found.kept, unsure)))
    assert "1 of these lose at most 3 points on the pictures that judge" in text
    assert "about 64 pictures to judge on, by --evaluation or as a quarter of 256" in text


def test_every_figure_says_what_it_shows(page: _Page) -> None:
    assert page.count("figure") == page.count("figcaption") == page.count("svg") == 5
    assert page.attributes("svg", "role") == ["img"] * 5
    assert all(page.attributes("svg", "aria-label"))


def test_what_was_not_given_has_no_figure() -> None:
    page = _Page(html(replace(found_by_search(), curves={})))
    assert page.count("figure") == 3


def test_activations_of_other_widths_are_charted_beside_the_weights(page: _Page) -> None:
    found = found_by_search()
    narrow = _Page(html(found, _bits(found, activation=6)))
    assert "activations" in narrow.texts("text")
    assert "activations" not in page.texts("text")


def test_plans_that_send_nothing_have_a_place_of_their_own(page: _Page) -> None:
    assert "none" in page.texts("text")
    found = found_by_search()
    sending = tuple(j for j in found.measured if j.candidate.codec)
    without = _Page(html(replace(found, measured=sending, kept=sending[:2])))
    assert "none" not in without.texts("text")


def test_the_fastest_plan_of_each_bandwidth_is_told(page: _Page) -> None:
    assert page.texts("li") == [
        "below 870 kbit/s: edge-only (0 bytes)",
        "from 870 kbit/s to 4.4 Mbit/s: conv_8 searched context (5,300 bytes)",
        "above 4.4 Mbit/s: cloud-only jpeg q75 (21,700 bytes)",
    ]


def test_long_names_in_figures_keep_their_ends() -> None:
    found = found_by_search("conv_8+" + "route_16+" * 9 + "conv_20")
    assert "conv_8+route_16+route…nv_20 searched context" in _Page(html(found)).texts("text")


def test_text_of_figures_takes_the_colour_and_the_font_of_the_page(page: _Page) -> None:
    styles = page.attributes("text", "style")
    assert styles
    assert all("fill: currentColor" in style for style in styles)
    assert not any("font-family" in style for style in styles)


@pytest.mark.parametrize("kind", ["cloud-only", "split", "edge-only"])
def test_one_plan_is_enough(kind: str) -> None:
    alone = (judged(kind, 44.0, 0 if kind == "edge-only" else 5300, 10),)
    page = _Page(
        html(replace(found_by_search(), ranked=alone, measured=alone, kept=alone, curves={}))
    )
    assert page.count("figure") == 3
    assert page.texts("li")[0].startswith("at any bandwidth: ")


def test_a_search_that_measured_no_accuracy_says_so_and_shows_none() -> None:
    found = found_by_search()
    unmeasured = replace(
        found,
        metric=None,
        reference_accuracy=None,
        judged_by=None,
        evaluation_images=(),
        curves={},
        ranked=tuple(replace(each, accuracy=None) for each in found.ranked),
        measured=tuple(replace(each, accuracy=None) for each in found.measured),
        kept=tuple(replace(each, accuracy=None) for each in found.kept),
    )
    page, text = html(unmeasured), markdown(unmeasured)
    for each in (page, text):
        assert "Accuracy was not measured." in each
        assert "AP50" not in each
        assert "None" not in each
    assert "Accuracy and cost" not in page
    assert "not measured" in sure(unmeasured)
    document = as_json(unmeasured)
    assert document["accuracy_metric"] is None
    assert {each["accuracy"] for each in document["candidates"]} == {None}
