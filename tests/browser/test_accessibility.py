"""Without a mouse, without eyes, on a telephone; in light and in dark."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser.chromium import TIMEOUT_MS
from tests.browser.service import ROOT, Service

PAIRS = "prompt,completion\n" + "".join(f"I see {i} birds.,{i} birds I see.\n" for i in range(20))
VIEWS = ["translate", "translate?compare=base,yoda%401", "train", "jobs", "adapters"]
OPEN_ALL = "for (const d of document.querySelectorAll('details')) d.open = true"


@pytest.fixture(scope="module")
def job(service: Service) -> str:
    return service.train("accessible", PAIRS, max_steps=2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, service: Service, job: str, scheme: str) -> None:
    context = browser.new_context(
        base_url=service.url, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    for view in [*VIEWS, f"jobs/{job}", "jobs/job-none"]:
        page.goto(f"#/{view}")
        if view == "train":
            page.locator("#file").set_input_files(
                {"name": "pairs.csv", "mimeType": "text/csv", "buffer": PAIRS.encode()}
            )
            expect(page.locator("#settings-title")).to_be_visible()
        if view.startswith("jobs/job-") and view != "jobs/job-none":
            expect(page.locator("h1 .status")).to_have_text("succeeded")
        expect(page.locator("main > .busy")).to_have_count(0)
        page.evaluate(OPEN_ALL)
        page.wait_for_load_state("networkidle") if not view.startswith("jobs/") else None
        found = Axe().run(page)
        assert found.violations_count == 0, f"{view}: {found.generate_report()}"
    page.goto("#/adapters")
    page.get_by_role("button", name="Import an adapter").click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    context.close()


def test_with_the_keyboard_alone(page: Page) -> None:
    # Chromium hands its file chooser over only once it was told to, which takes a moment.
    page.on("filechooser", lambda _: None)
    page.goto("")
    expect(page.get_by_role("textbox", name="Text to translate")).to_be_visible()

    def tab_to(what: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "(e => e.getAttribute('aria-label') || e.labels?.[0]?.textContent || (e.tabIndex < 0 ? '' : e.textContent))(document.activeElement)"
            )
            if re.search(what, focused):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none" or page.evaluate("document.activeElement.id") == "file"
                return
        raise AssertionError(f"Tab does not lead to {what}")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    tab_to("Translate with")
    page.keyboard.type("yoda")
    tab_to("Text to translate")
    page.keyboard.type("The soup is cold.")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".result-foot")).to_contain_text("yoda@1")
    page.evaluate("document.activeElement.blur()")
    page.reload()
    expect(page.locator(".result-foot")).to_contain_text("yoda@1")
    tab_to("^Train$")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    expect(page.locator(".dropzone")).to_be_visible()
    tab_to("Drop a file")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(ROOT / "examples" / "yoda.csv")
    expect(page.locator("#settings-title")).to_be_visible()
    tab_to("Our defaults")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("radio", name="Fast")).to_be_checked()
    tab_to("Start training")


@pytest.mark.parametrize("view", [*VIEWS, "job"])
def test_nothing_is_wider_than_a_telephone(
    browser: Browser, service: Service, job: str, view: str
) -> None:
    context = browser.new_context(base_url=service.url, viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto(f"#/{f'jobs/{job}' if view == 'job' else view}")
    expect(page.locator("main > .busy")).to_have_count(0)
    page.evaluate(OPEN_ALL)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


def test_long_names_fit_a_telephone(browser: Browser, service: Service) -> None:
    name, word = "a" * 63, "w" * 200
    rows = PAIRS.replace("birds", "owls")  # the same rows would be the dataset of another name
    dataset = service.client.post("/datasets", files={"file": (f"{word}.csv", rows.encode())})
    config = {"description": word, "training": {"max_steps": 1}, "evaluation": {"holdout": 2}}
    body = {"dataset_id": dataset.json()["id"], "adapter": name, "config": config}
    job = service.client.post("/jobs", json=body).json()["id"]
    context = browser.new_context(base_url=service.url, viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(f"#/jobs/{job}")
    expect(page.locator("h1 .status")).to_have_text("succeeded")
    addresses = [f"translate?with={name}", f"translate?compare=base,{name}%401", "jobs", "train"]
    addresses += [f"train?dataset={dataset.json()['id']}", f"adapters/{name}", f"jobs/{job}"]
    wide = []
    for address in addresses:
        page.goto(f"#/{address}")
        expect(page.locator("main > .busy")).to_have_count(0)
        expect(page.locator("main")).to_contain_text(re.compile("a{63}|w{200}"))
        page.evaluate(OPEN_ALL)
        if page.evaluate("document.documentElement.scrollWidth") > 360:
            wide.append(address)
    context.close()
    assert wide == []


def test_both_dictionaries_have_every_text(page: Page) -> None:
    page.goto("")
    keys = page.evaluate(
        """async () => {
            const load = async tag => Object.keys((await import(`/static/js/lang/${tag}.js`)).default);
            return {en: await load('en'), zh: await load('zh')};
        }"""
    )
    assert set(keys["en"]) == set(keys["zh"])
    used = set()
    for file in (ROOT / "app/static/js").rglob("*.js"):
        used |= set(re.findall(r"\bt\(\"([^\"]+)\"", file.read_text(encoding="utf-8")))
    assert used <= set(keys["en"])
