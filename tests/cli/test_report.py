"""The report as a browser shows it, and as a file."""

import os
import re

import pytest

from launch.report.html import Html, el, text
from launch.report.page import build
from planner.explain import explain
from profiler.codec import encode, replace
from tests import browser, made

SECTIONS = {"timeline", "memory", "step", "links", "pareto"}
"""Those with pictures."""


def page(plan=None, num_microbatches=12):
    """The page of a plan."""
    plan = plan or made.plan()
    return build(plan, explain(plan), made.timeline(num_microbatches))


@pytest.fixture(scope="module")
def chromium():
    """The browser, without which these tests are skipped, or fail where it is required."""
    found = browser.browser()
    if found is None:
        message = f"none of {', '.join(browser.NAMES)} is installed (apt-get install chromium)"
        (pytest.fail if browser.REQUIRED else pytest.skip)(message)
    return found


@pytest.mark.usefixtures("chromium")
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("num_microbatches", [12, 256])
def test_it_shows_all_pictures_without_overflow_error_or_request(width, num_microbatches, tmp_path):
    seen = browser.look(page(num_microbatches=num_microbatches), width, tmp_path)
    assert seen.width == width
    assert seen.scroll_width <= width
    assert seen.console == []
    assert seen.requests == []
    assert {svg["section"] for svg in seen.svgs} == SECTIONS
    for svg in seen.svgs:
        assert svg["width"] > width / 6, svg
        assert svg["height"] >= 15, svg
        assert svg["drawn"] > 0, svg


@pytest.mark.usefixtures("chromium")
def test_it_is_dark_where_the_system_is(tmp_path):
    light, dark = (browser.look(page(), 800, tmp_path, dark=d).background for d in (False, True))
    level = {b: sum(map(int, re.findall(r"\d+", b)[:3])) for b in (light, dark)}
    assert level[light] > 700
    assert level[dark] < 150


@pytest.mark.usefixtures("chromium")
def test_the_browsers_console_is_heard(tmp_path):
    wrong = page().replace("</main>", '<img src="https://example.com/x.png"></main>')
    assert browser.look(wrong, 800, tmp_path).console


def test_it_asks_for_nothing_from_outside():
    content = page()
    assert "<script" not in content
    assert not re.search(r"(?:src|href)=\"(?!data:)", content)
    assert "url(" not in content
    assert "@import" not in content
    assert "://" not in content


def test_same_plan_same_bytes():
    assert page() == page()


def test_tags_are_closed():
    opened = re.findall(r"<([a-z]\w*)", page())
    closed = re.findall(r"</([a-z]\w*)>", page())
    for tag in set(opened) - {"meta", "link"}:
        assert opened.count(tag) == closed.count(tag), tag


def test_what_a_plan_does_not_hold_has_no_section():
    content = page(made.bare())
    assert "nan" not in content.lower().replace("finance", "")
    ids = set(re.findall(r'<section id="(\w+)"', content))
    assert ids == {"why", "timeline", "memory", "step", "links", "rejected"}


def test_names_cannot_bring_markup():
    plan = made.plan()
    evil = '"><script>alert(1)</script>&'
    content = page(replace(plan, model=replace(plan.model, name=evil)))
    assert "<script" not in content
    assert "&lt;script&gt;" in content


def test_elements_escape_what_is_not_markup():
    assert el("p", "<b>", el("i", "&"), title='"') == '<p title="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    assert text(Html("<b>")) == "<b>"
    assert el("p", class_=None, hidden=False) == "<p></p>"


def test_a_price_gives_the_price_of_tokens():
    plan = made.plan()
    (group,) = plan.cluster.groups
    priced = replace(plan.cluster, groups=(replace(group, price_per_hour=2.5),))
    assert "price of a billion tokens" in page(replace(plan, cluster=priced))
    assert "price" not in page(plan)


def test_big_clusters_are_aggregated():
    from profiler.catalog import resolve_cluster

    layout = made.config(pp=4, vpp=1, dp_shard=64, zero=1, cp=2, tp=8, schedule="1f1b")
    plan = made.plan(
        cluster=resolve_cluster("h100-512x8"), chosen=made.candidate(30.0, layout, 70.0)
    )
    content = page(plan)
    assert "A cell is 16 nodes" in content
    assert len(content) < 2**20


@pytest.fixture
def reported(meshwright, tmp_path, monkeypatch):
    """`show plan.json --report PATH`."""
    monkeypatch.setattr("launch.report.page.timeline_of", lambda plan: made.timeline())
    (tmp_path / "plan.json").write_text(encode(made.plan()))
    return lambda *args: meshwright("show", "plan.json", "--report", *args)


def test_the_file_is_written_whole(reported, tmp_path):
    result = reported("out.html")
    assert (result.code, result.out) == (0, "")
    assert result.err == "Saved the report to: `out.html`\n"
    assert (tmp_path / "out.html").read_text() == page()
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "out.html"}
    both = reported("out.html", "--json")
    assert both.out == encode(made.plan())


def test_a_folder_or_a_missing_parent_is_an_error(reported, tmp_path):
    (tmp_path / "folder").mkdir()
    result = reported("folder")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: folder: it is a folder")
    result = reported("none/out.html")
    assert result.code == 1
    assert result.err.startswith("error: no such folder: `none`")
    assert not (tmp_path / "none").exists()


def test_an_unwritable_place_leaves_nothing(reported, tmp_path):
    (tmp_path / "file").write_text("")
    assert reported("file/out.html").code == 1
    if os.geteuid():  # root may write anywhere
        (tmp_path / "shut").mkdir(mode=0o500)
        assert reported("shut/out.html").code == 1
