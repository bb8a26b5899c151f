"""A real service and a real Chromium, one of each for all of these tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.service import Service

pytest.importorskip("playwright", reason="the web page's tests need playwright")
from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402

TIMEOUT_MS = 120_000  # training shares the processors with whatever else runs
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


# Not of the session: while it lives, a loop runs in this thread, and asyncio.run elsewhere would fail.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    executable = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"no Chromium: none of {', '.join(_NAMES)} is on the PATH")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def service(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("browser"))
    try:
        service.start()
        yield service
    finally:
        service.close()


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    """An empty tab that knows nothing of earlier ones. A script that fails, fails the test."""
    context = browser.new_context(locale="en-GB", base_url=service.url)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not errors
