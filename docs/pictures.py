"""Makes the pictures in these docs from the demo's report, in Debian's Chromium: `make docs-pictures`."""

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1280, "height": 1500}, color_scheme="light")
    page.goto((ROOT / "runs/demo/report.html").as_uri())
    page.screenshot(path=ROOT / "docs/report.png")
    browser.close()
