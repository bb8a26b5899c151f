"""/docs, without another server and under the page's own policy."""

from playwright.sync_api import ConsoleMessage, Page, expect

from tests.browser.service import Service


def test_docs_describe_each_call(page: Page, service: Service) -> None:
    asked: list[str] = []
    refused: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error":
            refused.append(message.text)

    page.on("request", lambda request: asked.append(request.url))
    page.on("console", note)
    page.goto("docs")
    expect(page.get_by_text("Translate a text or a list of texts").first).to_be_visible()
    page.locator("#operations-translate-translate_translate_post").get_by_role(
        "button"
    ).first.click()
    expect(page.get_by_text("The Force is strong in you!").first).to_be_visible()
    assert {url for url in asked if not url.startswith((service.url, "data:", "blob:"))} == set()
    assert refused == []
