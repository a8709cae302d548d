"""The status page in headless Chromium: live, quiet, fetched from nowhere else; and what a page of another origin gets: nothing."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import Agent, linear, make

from edge_agent import connect

api = pytest.importorskip("playwright.sync_api", reason="needs Playwright and Chromium: make test BROWSER=1")

pytestmark = [pytest.mark.browser, pytest.mark.e2e]
X = np.ones((1, 4), np.float32)

# What a page may try against an address on the same machine. Each entry is what it got.
ATTACK = """
const got = {};
async function attempt(name, work) { try { got[name] = (await work()) || null; } catch (error) { got[name] = null; } }
async function attack(agent, token) {
  await attempt("read", async () => (await fetch(agent + "/status.json")).text());
  await attempt("read the page", async () => (await fetch(agent + "/")).text());
  await attempt("read with the token", async () => (await fetch(agent + "/status.json", {headers: {Authorization: "Bearer " + token}})).text());
  await attempt("blind", async () => (await fetch(agent + "/status.json", {mode: "no-cors"})).text());
  await attempt("post", async () => (await fetch(agent + "/edge/stop", {method: "POST", mode: "no-cors", body: "{}"})).text());
  await attempt("infer", async () => (await fetch(agent + "/v2/models/toy/infer", {method: "POST", mode: "no-cors",
    headers: {"Content-Type": "text/plain"}, body: '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,1,1,1]}]}'})).text());
  await attempt("script", () => new Promise((done) => { const s = document.createElement("script"); s.onload = () => done("ran"); s.onerror = () => done(null);
    s.src = agent + "/status.json"; document.body.append(s); }));
  await attempt("frame", () => new Promise((done) => { const f = document.createElement("iframe"); f.onload = () => {
    let inner = null; try { inner = f.contentDocument && f.contentDocument.body.textContent.trim() || null; } catch {} done(inner); };
    f.src = agent + "/"; document.body.append(f); }));
  return got;
}
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "these tests need Chromium: apt-get install chromium"
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP rebound.test 127.0.0.1"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def served(agent: Agent, tmp_path: Path) -> tuple[Agent, str, str]:
    """An agent with a model, its address, its token."""
    agent.activate(make(tmp_path / "one", linear(), name="toy"))
    url = agent.ask("POST", "/edge/tcp", {"port": 0})["url"]
    return agent, url, (agent.home / "secrets" / "token").read_text().strip()


def test_it_is_live_and_quiet_and_fetches_nothing_elsewhere(chromium: Any, served: tuple[Agent, str, str]) -> None:
    agent, url, token = served
    with (agent.home / "journal.jsonl").open("a") as journal:
        told = {"time": "2026-01-01T00:00:00+00:00", "event": "failed", "what": "<img src=x onerror=document.title='owned'>", "message": "<script>"}
        journal.write(json.dumps(told) + "\n")
    said: list[str] = []
    fetched: list[str] = []
    page = chromium.new_page(viewport={"width": 1080, "height": 700})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(url + "/")
    page.fill("#token", token)
    page.press("#token", "Enter")
    page.wait_for_selector("h2:text('toy')")
    done = threading.Event()

    def ask() -> None:
        with connect("toy", home=agent.home) as model:
            while not done.wait(0.01):
                model(X)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        page.wait_for_selector("path.plot.p99[d*='L']", timeout=60_000)
        first = page.inner_text(".count")
        page.wait_for_function("before => document.querySelector('.count').textContent !== before", arg=first)
        page.click("button:text('run')")
        assert page.get_attribute("svg", "aria-label").startswith("run:")
        p50, p90, p99 = (float(page.inner_text(f"tbody tr:nth-child(4) td:nth-child({column})")) for column in (2, 3, 4))
        assert 0 < p50 <= p90 <= p99
        assert "became active" in page.inner_text("#history")
        assert "<img src=x onerror" in page.inner_text("#history")
        assert page.query_selector("#history img, #history script") is None
        assert page.title() == "edge-agent"
        page.reload()  # the token is kept by this tab
        page.wait_for_selector("h2:text('toy')")
        if "STATUS_PAGE_PNG" in os.environ:
            page.wait_for_timeout(30_000)
            page.screenshot(path=os.environ["STATUS_PAGE_PNG"], full_page=True)
    finally:
        done.set()
        asking.join()
    page.close()
    assert said == []
    assert set(fetched) <= {url + "/", url + "/status.json", "data:,"}


def test_a_wrong_token_shows_nothing(chromium: Any, served: tuple[Agent, str, str]) -> None:
    _, url, _ = served
    page = chromium.new_page()
    page.goto(url + "/")
    page.fill("#token", "guessed")
    page.press("#token", "Enter")
    page.wait_for_selector("#wrong:visible")
    assert not page.is_visible("#shown")
    assert page.evaluate("sessionStorage.length") == 0
    page.close()


def test_a_page_of_another_origin_gets_nothing(chromium: Any, served: tuple[Agent, str, str]) -> None:
    agent, url, token = served
    before = agent.model("toy")["count"]
    with elsewhere() as attacker:
        page = chromium.new_page()
        page.goto(attacker)
        got = page.evaluate("([agent, token]) => attack(agent, token)", [url, token])
        page.close()
    assert set(got.values()) == {None}, got
    assert agent.model("toy")["count"] == before  # nothing was asked behind its back, and the agent runs


def test_a_name_that_was_rebound_to_our_address_gets_nothing(chromium: Any, served: tuple[Agent, str, str]) -> None:
    _, url, token = served
    rebound = url.replace("127.0.0.1", "rebound.test")
    page = chromium.new_page()
    reply = page.goto(rebound + "/")
    assert reply.status == 403
    asked = "async token => { const reply = await fetch('/status.json', {headers: {Authorization: 'Bearer ' + token}}); return reply.status; }"
    assert page.evaluate(asked, token) == 403
    page.close()


class elsewhere:  # noqa: N801 - reads as a phrase
    """A web server of another origin, with the attack on its page."""

    def __enter__(self) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = f"<!doctype html><body><script>{ATTACK}</script>".encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
