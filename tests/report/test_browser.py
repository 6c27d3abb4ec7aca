"""The report as a person sees it: opened in Chromium, wide and narrow, light and dark, in print.

Needs Debian's `chromium`; where it is missing the tests are skipped, unless RELUME_BROWSER=required (as in CI).
"""

import os
import shutil

import pytest

import relume
from relume.report import write_html

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("RELUME_BROWSER") == "required":
            pytest.fail("no Chromium found, and RELUME_BROWSER=required")
        pytest.skip("no Chromium found")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def report(make_run, tmp_path):
    doomed = make_run(save=tmp_path / "doomed", kill=[(6, 0, [1, 2, 3], -100.0), (11, 2, range(8), -100.0)])
    path = write_html(doomed, tmp_path / "report.html", label="doomed", beside=[("sane", make_run())])
    return doomed, path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_without_errors_or_requests_and_never_scrolls_sideways(browser, report, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests, errors = [], []
    page.on("request", lambda r: requests.append(r.url))
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(report[1].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert requests == [report[1].as_uri()]
    assert errors == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    overflowing = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.scroll')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert overflowing == []
    page.close()


def test_the_figures_on_the_page_are_those_of_the_census(browser, report):
    watch, path = report
    page = browser.new_page()
    page.goto(path.as_uri())
    census = watch.census()
    assert census.dead == 11
    assert page.locator("#verdict").inner_text().startswith("11 of 16 units are dead")
    assert page.locator("article.finding").count() >= 1
    assert page.locator('[data-dead="0"]').inner_text() == str(census.dead)
    assert page.locator('[data-dead="1"]').inner_text() == "0"
    for name, site in census.items():
        card = page.locator(f'details[data-run="0"][data-site="{name}"]')
        card.evaluate("e => e.open = true")
        assert card.locator(".dead").first.inner_text() == str(int(site.dead.sum()))
        assert card.locator(".inputs").inner_text() == f"{site.inputs:,}"
    loaded = relume.load(path.parent / "doomed").census()
    assert loaded.to_dict() == census.to_dict()
    page.close()


def test_sites_open_by_keyboard(browser, report):
    page = browser.new_page()
    page.goto(report[1].as_uri())
    first = page.locator("details.site").first
    assert first.evaluate("e => e.open") is False
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('details.site') !== null"):
            break
    page.keyboard.press("Enter")
    assert first.evaluate("e => e.open") is True
    assert first.locator(".body").is_visible()
    page.close()


def test_findings_lead_to_their_sites_and_back(browser, report):
    page = browser.new_page(viewport={"width": 1280, "height": 700})
    page.goto(report[1].as_uri())
    finding = page.locator("article.finding").first
    site = finding.locator("caption a").first
    name = site.inner_text()
    site.click()
    card = page.locator(f'details[data-run="0"][data-site="{name}"]')
    assert card.evaluate("e => e.open") is True
    back = card.locator(".body p a").first
    assert back.is_visible()
    assert card.locator("summary").evaluate("e => e.getBoundingClientRect().top") >= 0
    back.click()
    assert page.evaluate("location.hash") == "#" + finding.get_attribute("id")
    page.close()


def test_a_call_is_selected_whole_by_one_click(browser, report):
    page = browser.new_page()
    page.goto(report[1].as_uri())
    call = page.locator("code.call").first
    call.click()
    assert page.evaluate("getSelection().toString().trim()") == call.inner_text().strip()
    page.close()


def test_print_shows_what_is_folded_on_screen(browser, report):
    page = browser.new_page()
    page.goto(report[1].as_uri())
    page.emulate_media(media="print")
    assert page.locator("details.site .body").first.is_visible()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_against_its_ground(browser, report, scheme):
    """WCAG AA: contrast of at least 4.5 for every text colour on page and card."""
    page = browser.new_page(color_scheme=scheme)
    page.goto(report[1].as_uri())
    ratios = page.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement);
          const lum = name => {
            const hex = style.getPropertyValue('--' + name).trim();
            const [r, g, b] = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
              .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const out = {};
          for (const ink of ['ink', 'soft', 'warn', 'amber', 'good', 'l1']) for (const ground of ['page', 'card']) {
            const [a, b] = [lum(ink), lum(ground)].sort((x, y) => y - x);
            out[ink + ' on ' + ground] = (a + 0.05) / (b + 0.05);
          }
          return out;
        }"""
    )
    assert {k: v for k, v in ratios.items() if v < 4.5} == {}
    page.close()
