"""Photograph a report for the pages that show one: its beginning, and the curves of its first data set.

    python docs/tools/photograph.py runs/report.html --top docs/pictures/tutorial/report.png \
        --curves docs/pictures/tutorial/curves.png
    python docs/tools/photograph.py small.html --width 1280 --top docs/pictures/report.png

It needs a Chromium on this machine. Runs are not kept with the documentation, so renew.py cannot make these pictures.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Locator, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MARGIN = 16
"""Pixels of the page around what is shown."""


def photograph(page: Page, report: Path, top: Path | None, curves: Path | None) -> None:
    """Write the pictures that are named: down to the end of the first figure; the first row of the figures after it."""
    page.goto(report.resolve().as_uri())
    first, second = (page.locator(".pictures").nth(place) for place in (0, 1))
    width = page.evaluate("document.documentElement.clientWidth")
    if top is not None:
        end = max(bottom for _, bottom in _edges(first))
        # The panel at the side is as high as the window.
        page.set_viewport_size({"width": width, "height": int(end) + MARGIN})
        page.screenshot(path=top)
    if curves is not None:
        edges = _edges(second)
        begin = edges[0][0]
        end = max(bottom for upper, bottom in edges if upper == begin)
        clip = {"x": 0, "y": begin - MARGIN, "width": width, "height": end - begin + 2 * MARGIN}
        page.screenshot(path=curves, full_page=True, clip=clip)


def _edges(pictures: Locator) -> list[tuple[float, float]]:
    """Of each figure the upper and the lower edge, in pixels from the page's top, whole."""
    script = "all => all.map(each => { const box = each.getBoundingClientRect();"
    script += " return [Math.floor(box.top + scrollY), Math.ceil(box.bottom + scrollY)]; })"
    return [tuple(each) for each in pictures.locator("figure").evaluate_all(script)]


def main() -> None:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--width", type=int, default=1100, help="of the window")
    parser.add_argument("--top", type=Path, help="where the beginning goes")
    parser.add_argument("--curves", type=Path, help="where the curves go")
    asked = parser.parse_args()
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        page = browser.new_page(viewport={"width": asked.width, "height": 900}, color_scheme="light")
        photograph(page, asked.report, asked.top, asked.curves)
        browser.close()


if __name__ == "__main__":
    main()
