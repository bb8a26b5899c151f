"""A real service and a real Chromium, one of each for all of these tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.chromium import MISSING, TIMEOUT_MS, find_chromium, launched
from tests.browser.service import Service


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


# Not of the session: while it lives, a loop runs in this thread, and asyncio.run elsewhere would fail.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip(MISSING)
    with launched(executable) as browser:
        yield browser


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
    if not service.is_running:  # a test that failed between stop and start
        service.start()
    context = browser.new_context(locale="en-GB", base_url=service.url)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not errors
