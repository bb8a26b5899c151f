"""The pictures of the README: `python -m tests.browser.screenshots`. Starts a service, trains a little, takes them."""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.browser.chromium import MISSING, TIMEOUT_MS, find_chromium, launched
from tests.browser.service import ROOT, Service

_FOLDER = ROOT / "docs" / "images"
_SIZE = {"width": 1200, "height": 900}
_TEXT = "I see a bird in the old tree."
_NUM_EPOCHS = 5


def take(browser: Browser, url: str, job: str, scheme: str) -> None:
    context = browser.new_context(base_url=url, viewport=_SIZE, color_scheme=scheme, locale="en-GB")
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(f"#/jobs/{job}")
    expect(page.locator("h1 .status")).to_have_text("succeeded", timeout=10 * TIMEOUT_MS)
    page.get_by_label("smoothing").fill("0.7")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.screenshot(path=_FOLDER / f"job-{scheme}.png")
    page.goto("#/translate?compare=base,yoda%401,mine%401")
    page.get_by_role("textbox", name="Text to translate").fill(_TEXT)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".result-foot .hint")).to_have_count(3)
    page.evaluate("document.activeElement.blur()")
    page.screenshot(path=_FOLDER / f"compare-{scheme}.png")
    context.close()


def main() -> int:
    executable = find_chromium()
    if executable is None:
        print(MISSING, file=sys.stderr)
        return 1
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, launched(executable) as browser:
        service = Service(Path(folder))
        try:
            service.start()
            rows = (ROOT / "examples" / "yoda.csv").read_text(encoding="utf-8")
            job = service.train("mine", rows, num_holdout=18, num_train_epochs=_NUM_EPOCHS)
            for scheme in ("light", "dark"):
                take(browser, service.url, job, scheme)
        finally:
            service.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
