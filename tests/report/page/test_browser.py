"""The page in a real browser, where there is one: ``pip install playwright`` and a chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bnpass.cli import main
from tests.commands.helpers import mlp, write

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no chromium on the PATH")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    model = write(mlp(layers=4), folder / "net.onnx")
    assert main(["insert", str(model), "-o", str(folder / "bn.onnx"), "-q"]) == 0
    assert main(["fold", str(folder / "bn.onnx"), "-o", str(folder / "out.onnx"), "--report",
                 str(folder / "report.html"), "--no-verify", "-q"]) == 0  # fmt: skip
    return folder / "report.html"


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_says_nothing_on_the_console(
    browser: Any, page: Path, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda r: r.url.startswith("file:") or said.append(r.url))
    tab.goto(page.as_uri())
    assert said == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 20, 24)"}[scheme]
    assert tab.locator(".box").count() >= 4
    outside = tab.evaluate(
        "[...document.querySelectorAll('.net')].filter(svg => [...svg.querySelectorAll('text')]"
        ".some(t => t.getBBox().x + t.getBBox().width > svg.viewBox.baseVal.width)).length"
    )
    assert outside == 0, "text off the edge of a drawing"
    context.close()


def test_keys_show_statistics_and_zoom(browser: Any, page: Path) -> None:
    tab = browser.new_page(viewport={"width": 1600, "height": 900})
    tab.goto(page.as_uri())
    tip = tab.locator("#tip")
    assert tip.is_hidden()
    tab.locator(".view").first.focus()
    tab.keyboard.press("Tab")
    assert tip.is_visible()
    assert "constant" in tip.inner_text() and "sd " in tip.inner_text()
    width = tab.locator(".view svg").first.get_attribute("width")
    tab.keyboard.press("+")
    larger = tab.locator(".view svg").first.get_attribute("width")
    assert float(larger) == pytest.approx(1.25 * float(width))
    tab.keyboard.press("0")
    assert float(tab.locator(".view svg").first.get_attribute("width")) == float(width)
    tab.keyboard.press("Escape")
    assert tip.is_hidden()
    tab.locator(".box").first.hover()
    assert tip.is_visible()
    tab.close()
