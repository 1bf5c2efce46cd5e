"""The report page in Chromium, from a folder made by hand, without a server."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from chromium import CHROMIUM, Browser
from page_example import POLICIES, SCRIPT, example

from eepolicy.analysis.evaluation.page import page_data
from eepolicy.analysis.evaluation.page_template import render

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: Debian's package has it"),
]

READY = "document.querySelector('#plot').dataset.ready === 'true'"
ROWS = "[...document.querySelectorAll('tbody code')].map((code) => code.textContent)"
ASKED = "document.querySelector('#asked').textContent"
SOURCE = "Bokeh.documents[0].get_model_by_name('rows').data"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page, its document and its folder."""
    folder = tmp_path_factory.mktemp("run")
    data = page_data(example(folder))
    (folder / "index.html").write_text(render(data), encoding="utf-8")
    return (folder / "index.html").as_uri(), data, folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(browser, report):
    """The open page; whatever a test does, it must not write to the console nor fetch."""
    browser.open(report[0])
    browser.wait(READY)
    yield browser
    assert browser.messages == []
    fetched = [url for url in browser.requests if not url.startswith(("data:", "blob:"))]
    assert [url for url in fetched if "/audio/" not in url] == [report[0]]
    assert all(url.startswith(report[0].rpartition("/")[0]) for url in fetched)
    assert browser.run("window.ran") is None


def press(page, selector: str, key: str = "Enter", code: int = 13) -> None:
    page.run(f"document.querySelector({json.dumps(selector)}).focus()")
    page.press(key, code)


def choose(page, selector: str, value: str) -> None:
    chosen = f"document.querySelector({json.dumps(selector)})"
    page.run(f"{chosen}.value = {json.dumps(value)}; {chosen}.dispatchEvent(new Event('change'))")


def test_verdicts_come_first(page):
    headings = page.run("[...document.querySelectorAll('h2')].map((h) => h.textContent)")
    assert headings[:4] == ["Verdicts", "Quality against cost", "All measurements", "One question"]
    items = page.run("[...document.querySelectorAll('#verdicts li')].map((li) => li.innerText)")
    assert [
        POLICIES[i] in item and f"verdict of {POLICIES[i]}" in item for i, item in enumerate(items)
    ]
    assert "✓ not worse" in items[1]
    assert "✗ worse" in items[2]


def test_headings_sort_by_keyboard(page, report):
    values = {row["policy"]: row["values"]["wer"]["value"] for row in report[1]["rows"]}
    expected = sorted(POLICIES, key=values.get)
    assert page.run(ROWS) == list(POLICIES) != expected
    press(page, "th[data-name=wer] button")
    assert page.run(ROWS) == expected
    sort = "document.querySelector('th[data-name=wer]').getAttribute('aria-sort')"
    assert page.run(sort) == "ascending"
    page.press("Enter", 13)  # the heading keeps the focus
    assert page.run(ROWS) == expected[::-1]
    assert page.run(sort) == "descending"
    press(page, "th[data-name=policy] button")
    assert page.run(ROWS) == sorted(POLICIES)


def test_filters_and_columns(page, report):
    page.run("document.querySelector('#filter').focus()")
    page.call("Input.insertText", text="SPARK")
    assert page.run(ROWS) == ["spark:triple@14"]
    assert page.run("document.querySelector('#count').textContent") == "1 of 4 policies"
    page.run("document.querySelector('#filter').value = ''")
    choose(page, "#status", "not worse")
    assert page.run(ROWS) == ["static@16"]
    headings = "[...document.querySelectorAll('thead th')].map((th) => th.dataset.name)"
    assert "ended" not in page.run(headings)
    press(page, "#columns summary")
    press(page, "#columns input[name=ended]", " ", 32)
    assert "ended" in page.run(headings)
    for box in page.run("[...document.querySelectorAll('#columns input')].map((i) => i.name)"):
        page.run(
            f"document.querySelector('#columns input[name={box}]').checked || "
            f"document.querySelector('#columns input[name={box}]').click()"
        )
    assert len(page.run(headings)) == 1 + len(report[1]["columns"])


def test_the_plot_shows_rows_axes_and_margin(page, report):
    rows = report[1]["rows"]
    assert page.run(f"Array.from({SOURCE}.policy)") == list(POLICIES)
    differences = [row["values"]["wer"]["diff"] for row in rows[1:]]
    assert page.run(f"Array.from({SOURCE}.y)") == pytest.approx([0, *differences])
    assert page.run(f"Array.from({SOURCE}.x)") == pytest.approx([1, 1.1, 1.2, 1.3])
    box = "Bokeh.documents[0].get_model_by_name('margin')"
    assert page.run(f"[{box}.bottom, {box}.top]") == [-2, 2]
    choose(page, "#shown", "value")
    choose(page, "#quality", "accuracy_speech")
    choose(page, "#cost", "seconds")
    full = rows[0]["values"]["accuracy_speech"]["value"]
    assert page.run(f"[{box}.bottom, {box}.top]") == pytest.approx([full - 5, full + 5])
    lows = [row["values"]["accuracy_speech"]["low"] for row in rows]
    assert page.run(f"Array.from({SOURCE}.y_low)") == pytest.approx(lows)
    seconds = [row["values"]["seconds"]["value"] for row in rows]
    assert page.run(f"Array.from({SOURCE}.x)") == pytest.approx(seconds)
    press(page, "#legend label:nth-of-type(2) input", " ", 32)
    assert page.run(f"Array.from({SOURCE}.policy)") == [POLICIES[i] for i in (0, 2, 3)]


def test_pointing_at_a_marker_names_its_row(page):
    for index in (1, 3):  # the last name has a script
        place = page.run(f"""(() => {{
            document.querySelector("#canvas").scrollIntoView();
            const find = (view) => view.model.name === "figure" ? view
                : [...(view.child_views ?? [])].map(find).find(Boolean);
            const view = find([...Bokeh.index.roots ?? Object.values(Bokeh.index)][0]);
            const box = view.el.getBoundingClientRect();
            const frame = view.frame;
            return [box.x + frame.x_scale.compute({SOURCE}.x[{index}]),
                    box.y + frame.y_scale.compute({SOURCE}.y[{index}])];
        }})()""")
        page.move(5, 5)
        page.move(*place)
        text = """(() => {
            const texts = [];
            const walk = (node) => { for (const child of node.children) {
                const tip = child.classList.contains("bk-Tooltip");
                if (tip) texts.push((child.shadowRoot ?? child).textContent);
                walk(child); if (child.shadowRoot) walk(child.shadowRoot); } };
            walk(document.body);
            return texts.join("");
        })()"""
        page.wait(f"({text}).includes({json.dumps(POLICIES[index])})")
        assert "word error rate, %: " in page.run(text)
        assert "difference" in page.run(text)


def test_embedded_and_external_sound_plays(page, report):
    _, data, _ = report
    inside = next(q for q in data["questions"] if q["id"] == data["first"])
    beside = next(
        q for q in data["questions"] if all(r["sound"] not in data["sounds"] for r in q["replies"])
    )
    for question, scheme in ((inside, "data:"), (beside, "file:")):
        page.run(f"location.hash = 'q={question['id']}'")
        page.wait(f"{ASKED} === {json.dumps(question['question'])}")
        players = "[...document.querySelectorAll('audio')]"
        page.wait(f"{players}.every((audio) => audio.duration > 0.9)")
        assert page.run(f"{players}.map((audio) => audio.src.slice(0, 5))") == [scheme] * 4
        page.run(f"{players}[1].play()")
        page.wait(f"{players}[1].currentTime > 0.05")
        page.run(f"{players}[2].play()")  # one at a time
        page.wait(f"{players}[1].paused")
    # a reply without a file has no player
    page.run(f"location.hash = 'q={data['questions'][1]['id']}'")
    page.wait(f"{ASKED} === 'Question 1?'")
    assert page.run("document.querySelectorAll('.reply').length") == 4
    assert page.run("document.querySelectorAll('audio').length") == 3


def test_questions_by_link_filter_and_keys(page, report):
    address, data, _ = report
    first = next(q for q in data["questions"] if q["id"] == data["first"])
    assert page.run(ASKED) == first["question"]  # it differs most
    differing = [q["question"] for q in data["questions"] if q["differs"]]
    options = "[...document.querySelectorAll('#question option')].map((o) => o.textContent)"
    assert page.run(options) == differing
    page.run("document.activeElement.blur()")
    page.press("ArrowLeft", 37)
    before = differing[differing.index(first["question"]) - 1]
    assert page.run(ASKED) == before
    page.press("ArrowRight", 39)
    assert page.run(ASKED) == first["question"]
    press(page, "#previous")
    assert page.run(ASKED) == before
    press(page, "#differing", " ", 32)
    assert page.run(options) == [q["question"] for q in data["questions"]]
    # a link to a question that the filter hides
    same = data["questions"][3]
    assert not same["differs"]
    page.open(f"{address}#q={same['id']}")
    page.wait(READY)
    assert page.run(ASKED) == same["question"]
    assert page.run("document.querySelector('#differing').checked") is False
    page.requests[0] = address


def test_word_errors_are_told_apart_without_colour(page, report):
    question = report[1]["questions"][1]["id"]
    page.run(f"location.hash = 'q={question}'")
    page.wait(f"{ASKED} === 'Question 1?'")
    words = page.run(
        "[...document.querySelectorAll('.reply:nth-child(3) .word')].map((w) => w.textContent)"
    )
    assert words[0] == "substitution: is → was"
    assert words[1:] == ["insertion: +very", "substitution: cold → much"]
    borders = {
        kind: page.run(
            f"getComputedStyle(document.querySelector('#questions .{kind}')).borderBottomStyle"
        )
        for kind in ("substitution", "insertion", "deletion")
    }
    assert len(set(borders.values())) == 3
    assert "none" not in borders.values()


def test_strips_have_a_bar_per_token(page):
    heights = page.run("""[...document.querySelectorAll('.reply:nth-child(2) .strip rect')]
        .map((r) => [r.parentNode.className.baseVal, Number(r.getAttribute('height'))])""")
    assert heights == [["text", 20], ["text", 20], *[["speech", 18]] * 4]


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_light_dark_and_narrow(page, report, width, dark):
    page.open(report[0], width, dark=dark)
    page.wait(READY)
    assert page.run("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.run("document.documentElement.scrollHeight") < 6000
    ground = "getComputedStyle(document.body).backgroundColor"
    grounds = ["rgb(22, 24, 28)", "rgb(255, 255, 255)"]
    assert page.run(ground) == grounds[not dark]
    colour = f"{SOURCE}.colour[0]"
    assert page.run(colour) == ("#ffffff" if dark else "#000000")
    press(page, "#theme")
    assert page.run(ground) == grounds[dark]
    assert page.run(colour) == ("#000000" if dark else "#ffffff")
    hinted = "!document.querySelector('#more').hidden"
    box = "document.querySelector('.scroll')"
    scrolls = f"{box}.scrollWidth > {box}.clientWidth + 1"
    assert page.run(hinted) == page.run(scrolls)
    assert page.run(scrolls) or width > 400


def test_model_text_is_shown_and_not_run(page, report):
    question = report[1]["questions"][0]
    page.run(f"location.hash = 'q={question['id']}'")
    page.wait(f"{ASKED} === {json.dumps(question['question'])}")
    for text in (
        f"Question 0?{SCRIPT}",
        f"note {SCRIPT}",
        f"eepolicy compare '{SCRIPT}'",
        f"mine:{SCRIPT}",
    ):
        assert page.run(f"document.body.innerText.includes({json.dumps(text)})"), text
    assert f"</script>{SCRIPT}" in page.run("document.querySelector('#replies').textContent")
    assert page.run("document.querySelectorAll('script').length") == 4
    assert page.run("[...document.images].length") == 0
    # if markup came in all the same, the browser would not run it
    blocked = page.run("""new Promise((done) => {
        addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective));
        const script = document.createElement("script");
        script.textContent = "window.ran = 3";
        document.body.append(script);
        setTimeout(() => done("none"), 2000);
    })""")
    assert blocked.startswith("script-src")
    page.messages.clear()


def test_a_page_without_times_or_margins(browser, tmp_path):
    """One question, which was not timed."""
    given = example(tmp_path, questions=1)
    unknown = ("speedup", "seconds")
    rows = [{k: None if k.startswith(unknown) else v for k, v in row.items()} for row in given.rows]
    data = page_data(replace(given, rows=rows, margins=None))
    (tmp_path / "index.html").write_text(render(data), encoding="utf-8")
    browser.open((tmp_path / "index.html").as_uri())
    browser.wait(READY)
    assert browser.run(f"Array.from({SOURCE}.policy)") == list(POLICIES)
    assert browser.run("Bokeh.documents[0].get_model_by_name('margin').visible") is False
    assert browser.run("document.querySelector('#differing').disabled") is True
    assert browser.run("document.querySelectorAll('.reply').length") == 4
    assert browser.messages == []


def test_a_page_without_its_folder_has_its_sound(browser, report, tmp_path):
    alone = tmp_path / "alone.html"
    shutil.copy(report[2] / "index.html", alone)
    browser.open(alone.as_uri())
    browser.wait(READY)
    browser.wait("[...document.querySelectorAll('audio')].every((audio) => audio.duration > 0.9)")
    assert browser.run("document.querySelectorAll('audio').length") == 4
    assert browser.messages == []
