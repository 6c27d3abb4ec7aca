"""Makes the pictures in these docs from the demo's report, in Debian's Chromium: `make docs-pictures`."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
REPORT = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs/demo/report.html"

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1280, "height": 1500}, color_scheme="light")
    page.goto(REPORT.resolve().as_uri())
    page.screenshot(path=ROOT / "docs/report.png")
    page.locator("section[aria-labelledby=h-network]").screenshot(path=ROOT / "docs/network.png")
    browser.close()
