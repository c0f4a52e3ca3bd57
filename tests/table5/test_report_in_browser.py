"""The report in a headless browser."""

from __future__ import annotations

import re
import shutil

import pytest

from core_agent.table5.report import write_report
from tests.table5.run_folders import STATUS, write_run

pytestmark = pytest.mark.browser

SETTINGS = {"DCS-cheetah-run-easy-dynamic": 400.0, "DCS-walker-walk-easy-dynamic": 700.0}
AGENTS = {"core": 0.0, "curl": -150.0}
NEEDS_PLAYWRIGHT = "needs Playwright: pip install -e '.[dev]'"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
POINT = "#curves .chart .point"
TASKS = "#table .scroll:last-child tbody tr"
PATIENCE = 10 * 60 * 1_000
"""Milliseconds to wait for anything; a wrong expectation takes them all."""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason=NEEDS_PLAYWRIGHT)
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("needs a browser: sudo apt-get install chromium (Debian, Ubuntu)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    losses = {f"train/{name}_loss": [3.0, 2.0, 1.0] for name in ("actor", "critic")}
    for agent, offset in AGENTS.items():
        for env_id, score in SETTINGS.items():
            for seed in range(3):
                best = score + offset + 10 * seed
                write_run(
                    folder / "runs" / agent / env_id / str(seed),
                    {250_000: best / 2, 500_000: best},
                    losses,
                    video=seed == 1,
                    agent=agent,
                    env_id=env_id,
                    seed=seed,
                )
    failed = {**STATUS, "state": "failed", "error": "one long line " * 50}
    write_run(folder / "runs" / "failed", status=failed, seed=9)
    write_report([folder / "runs"], folder / "report.html")
    return (folder / "report.html").as_uri()


@pytest.fixture
def open_page(browser, report):
    """A function that opens the page; console messages and requests fail the test."""
    complaints, contexts = [], []

    def note_request(request):
        if not request.url.startswith((report, "blob:", "data:")):
            complaints.append(request.url)

    def note_message(message):
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def open_page(width=1280, scheme="light"):
        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        contexts[-1].set_default_timeout(PATIENCE)
        page = contexts[-1].new_page()
        page.on("request", note_request)
        page.on("console", note_message)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(report)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def show(page, section, element):
    """Scroll to a section, and wait until an element of it is there."""
    page.locator(section).scroll_into_view_if_needed()
    page.locator(element).first.wait_for()


def test_it_draws_plays_and_answers_the_pointer_without_errors_and_requests(open_page):
    page = open_page()
    assert page.title() == "CoRe and CURL on 2 tasks"
    show(page, "#curves", POINT)
    chart = page.locator("#curves .chart").first
    box = chart.locator(".nsewdrag").bounding_box()
    page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 0.5 * box["height"])
    label = chart.locator(".hoverlayer")
    label.locator("text").first.wait_for()
    shown = re.sub(r"\s+", " ", label.text_content())
    assert "500,000 simulator steps" in shown
    assert "CoRe 410 [400, 420], 3 seeds" in shown
    assert "paper 423 ± 22" in shown

    show(page, "#losses", "#losses .js-line")
    assert page.locator("#losses-2 .js-line").count() == 0
    page.locator("#loss-setting").select_option(label="walker-walk, easy, dynamic")
    show(page, "#losses-2", "#losses-2 .js-line")
    assert page.locator("#losses-1").is_hidden()

    video = page.locator("video").first
    video.scroll_into_view_if_needed()
    video.evaluate("""video => new Promise((resolve) => {
        video.ontimeupdate = () => video.currentTime > 0.2 && resolve();
        video.play();
    })""")
    facts = video.evaluate("video => [video.videoWidth, video.muted, video.loop]")
    assert facts == [320, True, True]


def test_a_click_on_a_heading_sorts_and_so_does_the_keyboard(open_page):
    page = open_page()
    header = page.locator("#table .scroll:last-child th", has_text="Ours")
    header.locator("button").click()
    ours = "rows => rows.map(row => Math.round(row.cells[2].dataset.value))"
    assert page.locator(TASKS).evaluate_all(ours) == [260, 410, 560, 710]
    assert header.get_attribute("aria-sort") == "ascending"
    header.locator("button").click()
    assert page.locator(TASKS).evaluate_all(ours) == [710, 560, 410, 260]
    assert header.get_attribute("aria-sort") == "descending"

    header = page.locator("#table .scroll:last-child th", has_text="Setting")
    header.locator("button").focus()
    tasks = "rows => rows.map(row => row.cells[0].dataset.value.split(',')[0])"
    page.keyboard.press("Enter")
    assert page.locator(TASKS).evaluate_all(tasks) == ["cheetah-run"] * 2 + ["walker-walk"] * 2
    page.keyboard.press("Space")
    assert page.locator(TASKS).evaluate_all(tasks) == ["walker-walk"] * 2 + ["cheetah-run"] * 2
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "none"


def test_button_and_system_turn_the_theme_and_the_charts_with_it(open_page):
    expect = pytest.importorskip("playwright.sync_api", reason=NEEDS_PLAYWRIGHT).expect
    look = f"""() => [getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.querySelector('{POINT}')).fill]"""
    light = ["rgb(251, 251, 249)", "rgb(0, 103, 165)"]
    dark = ["rgb(19, 21, 24)", "rgb(90, 180, 240)"]
    page = open_page(scheme="light")
    show(page, "#curves", POINT)
    assert page.evaluate(look) == light
    page.emulate_media(color_scheme="dark")
    expect(page.locator(POINT).first).to_have_css("fill", dark[1], timeout=PATIENCE)
    for pressed, expected in (("false", light), ("true", dark)):
        page.locator("#theme").click()
        assert page.evaluate(look) == expected
        assert page.locator("#theme").get_attribute("aria-pressed") == pressed


def test_a_phone_scrolls_down_and_never_sideways_and_a_screen_is_filled(open_page):
    page = open_page(width=390)
    page.locator(".chart >> visible=true").last.scroll_into_view_if_needed()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    rights = "links => links.map(link => link.getBoundingClientRect().right)"
    assert max(page.locator(".bar a").evaluate_all(rights)) <= 390
    page.set_viewport_size({"width": 1280, "height": 900})
    right = "element => element.getBoundingClientRect().right"
    last = page.locator("#curves figure").last.evaluate(right)
    assert last == pytest.approx(page.locator("#curves .grid").evaluate(right), abs=1)


def test_printing_draws_every_visible_chart(open_page):
    page = open_page()
    page.pdf()
    charts = page.locator(".chart >> visible=true")
    drawn = "charts => charts.map(chart => chart.querySelector('.main-svg') !== null)"
    assert all(charts.evaluate_all(drawn))
    texts = page.locator("#curves .chart").evaluate_all("charts => charts.map(c => c.textContent)")
    assert all("CURL" in text and "paper 500k" in text for text in texts)
