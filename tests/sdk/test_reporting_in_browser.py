"""The report's page in headless Chromium: quiet, drawn, fetching nothing, readable by everybody, narrow, on paper; what somebody hostile wrote stays text."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgesdk
from tests import vendor
from tests.sdk import reported

api = pytest.importorskip("playwright.sync_api", reason="needs Playwright and Chromium: make test BROWSER=1")

pytestmark = [pytest.mark.browser]
BAD = ("serious", "critical")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "these tests need Chromium: apt-get install chromium"
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Opened:
    """A page of a report, and what it said and fetched."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.said: list[str] = []
        self.fetched: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.goto(path.as_uri())
        self.until("[...document.querySelectorAll('[data-chart]')].every((holder) => holder.querySelector('svg.plot'))")
        self.own = {path.as_uri(), "data:,"}

    def until(self, holds: str) -> None:
        """Asked from outside: the page's own policy forbids what `wait_for_function` does."""
        end = time.monotonic() + 20
        while not self.page.evaluate(holds):
            assert time.monotonic() < end, holds
            time.sleep(0.05)

    @property
    def is_quiet(self) -> bool:
        assert self.said == []
        assert set(self.fetched) <= self.own
        return True


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    path = folder / "out.html"
    path.write_text(edgesdk.report(files=reported.write(folder)).to_html())
    return path


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_drawn_in_silence_and_everybody_can_read_it(chromium: Any, page: Path, width: int, scheme: str) -> None:
    assert vendor.AXE.exists(), "`python -m tests.vendor axe` fetches it; make test BROWSER=1 does"
    opened = Opened(chromium, page, width, scheme)
    assert opened.page.locator("[data-chart]").count() >= 13
    opened.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.page.evaluate(vendor.AXE.read_text())
    found = opened.page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in BAD] == []
    assert opened.is_quiet
    opened.page.close()


def test_it_is_drawn_anew_for_another_width(chromium: Any, page: Path) -> None:
    opened = Opened(chromium, page, 1400)
    opened.page.set_viewport_size({"width": 400, "height": 900})
    opened.until("[...document.querySelectorAll('[data-chart] svg.plot')].every((svg) => Number(svg.getAttribute('width')) < 400)")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 400
    assert opened.is_quiet
    opened.page.close()


def test_a_finger_sees_the_figures(chromium: Any, page: Path) -> None:
    opened = Opened(chromium, page, 1400)
    chart = opened.page.locator("#sustained svg.plot").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    opened.page.wait_for_selector("#sustained svg.plot [aria-label=tip] text")
    assert "answers a second" in opened.page.locator("#sustained svg.plot [aria-label=tip]").first.text_content()
    assert opened.is_quiet
    opened.page.close()


def test_on_paper_nothing_is_folded_away(chromium: Any, page: Path, tmp_path: Path) -> None:
    opened = Opened(chromium, page, 1400, "dark")
    assert opened.page.locator("details:not([open])").count() > 0
    opened.page.evaluate("addEventListener('beforeprint', () => { window.folded = document.querySelectorAll('details:not([open])').length; })")
    opened.page.pdf(path=tmp_path / "out.pdf")
    assert (tmp_path / "out.pdf").stat().st_size > 20_000
    opened.page.set_viewport_size({"width": 720, "height": 1000})  # what A4 has within its margins
    opened.page.emulate_media(media="print")
    opened.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 720
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.page.evaluate("window.folded") == 0
    assert opened.is_quiet
    opened.page.close()


def test_what_somebody_hostile_wrote_stays_text(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    path.write_text(edgesdk.report(files=reported.write(tmp_path, hostile=True)).to_html())
    opened = Opened(chromium, path, 1400)
    opened.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert opened.page.title() != "owned"
    assert "<script>document.title='owned'" in opened.page.title()
    assert opened.page.locator("img, iframe, object, [onload], [onerror]").count() == 0
    assert opened.page.locator("script").count() == 4
    assert opened.is_quiet
    opened.page.close()


def test_even_what_got_in_would_not_run(chromium: Any, page: Path, tmp_path: Path) -> None:
    """The policy is the second fence: here somebody has climbed the first."""
    path = tmp_path / "out.html"
    path.write_text(page.read_text().replace("<main>", "<main><script>document.title='owned'</script><img src=x onerror=document.title='owned'>", 1))
    opened = Opened(chromium, path, 1400)
    assert opened.page.title() != "owned"
    assert any("Content Security Policy" in line for line in opened.said)
    opened.page.close()


def test_the_charts_say_in_words_what_they_show(chromium: Any, page: Path) -> None:
    opened = Opened(chromium, page, 1400)
    for figure in opened.page.locator("figure").all():
        assert figure.locator("svg.plot").first.get_attribute("aria-hidden") == "true"
        assert figure.locator("figcaption").text_content().strip()
        assert figure.locator(".unseen").text_content().strip()
    opened.page.close()
