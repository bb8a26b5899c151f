"""The Chromium that is installed, without what needs a desktop, a GPU or the network."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, expect, sync_playwright

TIMEOUT_MS = 90_000  # training shares the processors with whatever else runs
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
MISSING = f"no Chromium: none of {', '.join(_NAMES)} is on the PATH"


def find_chromium() -> str | None:
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


@contextmanager
def launched(executable: str) -> Iterator[Browser]:
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        yield browser
        browser.close()
