"""`python -m tests.report_pictures`: the pictures of docs/report.md, out of docs/report-example.html. Needs Playwright, Chromium and Pillow."""

import io
import shutil
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
SIZES = {400: 1500, 1400: 1900}  # of the page's top: width and height


def main() -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        for width, height in SIZES.items():
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.goto((DOCS / "report-example.html").as_uri())
                page.wait_for_selector("[data-chart] svg.plot")
                page.wait_for_timeout(300)
                picture = Image.open(io.BytesIO(page.screenshot()))
                picture.quantize(96, dither=Image.Dither.NONE).save(DOCS / f"report-{width}-{scheme}.png", optimize=True)
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
