"""Somebody who just wants a translation."""

import json
import re
import subprocess
import sys
from urllib.parse import unquote

from playwright.sync_api import Page, Route, expect

from tests.browser.chromium import TIMEOUT_MS
from tests.browser.service import Service, wait_until

TEXT = "The soup is cold and the bread is old."


def source(page: Page):
    return page.get_by_role("textbox", name="Text to translate")


def answers(page: Page):
    return page.locator(".output")


def translation(service: Service, **body: object) -> str:
    return str(service.client.post("/translate", json={"q": TEXT, **body}).json()["translatedText"])


def test_a_text_is_translated_while_one_watches(page: Page, service: Service) -> None:
    expected = translation(service, adapter="yoda")
    page.goto("#/translate?with=yoda")
    page.evaluate(
        """() => {
            window.seen = new Set();
            new MutationObserver(() => window.seen.add(document.querySelector('.output').textContent))
              .observe(document.querySelector('main'), {subtree: true, childList: true, characterData: true});
        }"""
    )
    source(page).fill(TEXT)
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(answers(page)).to_have_text(expected)
    usage = service.client.post("/translate", json={"q": TEXT, "adapter": "yoda"}).json()["usage"]
    tokens = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"
    expect(page.locator(".result-foot")).to_contain_text(f"yoda@1 · {tokens}")
    pieces = [s for s in page.evaluate("[...window.seen]") if s and expected.startswith(s)]
    assert len(pieces) > 2, "it came in one piece"


def test_a_language_pair_chooses_the_adapter(page: Page) -> None:
    page.goto("")
    page.get_by_label("Translate with").select_option(label="Classical Chinese → Chinese")
    source(page).fill("王怒，遂去。")
    source(page).press("Control+Enter")
    expect(page.locator(".result-foot")).to_contain_text("wenyan@1")
    assert unquote(page.url).endswith("with=lzh>zh")


def test_translators_are_compared_side_by_side(page: Page, service: Service) -> None:
    expected = [translation(service, adapter=ref) for ref in ("base", "yoda@1")]
    page.goto("")
    source(page).fill(TEXT)
    page.get_by_text("Compare translators").click()
    page.get_by_role("checkbox", name="the bare base model").check()
    page.get_by_role("checkbox", name="yoda@1").check()
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(answers(page)).to_have_text(expected)
    page.reload()
    expect(answers(page)).to_have_text(expected)  # what was answered is still there


def test_alternatives_copy_and_a_better_one(page: Page, service: Service) -> None:
    page.goto("#/translate?with=yoda")
    source(page).fill(TEXT)
    page.get_by_text("Options").click()
    page.get_by_label("Alternatives").fill("8")
    page.get_by_label("Alternatives").press("Tab")
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.locator(".alternatives li").first).to_be_visible()
    expect(page.get_by_role("button", name="Translate", exact=True)).to_be_enabled()
    answer = json.loads(page.evaluate("sessionStorage.getItem('dragoman.translate')"))
    # Those that only repeat another are left out.
    alternatives = answer["results"]["yoda"]["alternatives"]
    assert 2 <= len(alternatives) <= 8
    expect(page.locator(".alternatives li > span")).to_have_text(alternatives)
    page.locator(".result-foot > .actions").get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == answers(page).text_content()
    page.get_by_role("button", name="Suggest a better one").click()
    page.get_by_label("How should it read?").fill("Cold the soup is, and old the bread.")
    with page.expect_response("**/suggest") as answered:
        page.get_by_role("button", name="Send").click()
    assert answered.value.status == 200
    assert answered.value.request.post_data_json == {
        "q": TEXT,
        "s": "Cold the soup is, and old the bread.",
        "adapter": "yoda@1",  # not another one of the same languages
    }
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.goto("#/adapters/yoda")
    with page.expect_download() as saved:
        page.get_by_role("link", name="Suggestions").click()
    assert saved.value.suggested_filename == "yoda-suggestions.jsonl"
    kept = json.loads(saved.value.path().read_text(encoding="utf-8").splitlines()[-1])
    assert (kept["prompt"], kept["completion"]) == (TEXT, "Cold the soup is, and old the bread.")


def test_an_address_that_is_none_shows_the_page(page: Page) -> None:
    page.goto("#/jobs/%E0%A4%A")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("%E0%A4%A")


def test_the_calls_shown_give_what_is_shown(page: Page, service: Service) -> None:
    page.goto("#/translate?with=yoda")
    source(page).fill('It isn\'t "cold".')
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.locator(".result-foot")).to_contain_text("yoda@1")
    page.get_by_text("The same from a program").click()
    curl, python = page.locator(".call-panel code").all_text_contents()
    shown = answers(page).text_content()
    said = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True).stdout
    assert shown in said.replace('\\"', '"')
    said = subprocess.run(
        [sys.executable, "-c", python], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip("\n") == shown


def test_a_reload_in_the_middle_takes_the_translation_up_again(
    page: Page, service: Service
) -> None:
    expected = translation(service, adapter="yoda")
    page.goto("#/translate?with=yoda")
    source(page).fill(TEXT)
    cut = True

    def hold(route: Route) -> None:
        nonlocal cut
        if cut:
            cut = False  # never answered: the reload comes first
        else:
            route.continue_()

    page.route("**/translate", hold)
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.get_by_text("Waiting for the first word")).to_be_visible()
    page.reload()
    expect(source(page)).to_have_value(TEXT)
    expect(answers(page)).to_have_text(expected)


def test_stop_ends_it(page: Page, service: Service) -> None:
    page.goto("#/translate?with=base")
    source(page).fill(TEXT * 20)
    page.get_by_text("Options").click()
    page.get_by_label("Longest answer").fill("1000")
    page.get_by_label("Longest answer").press("Tab")
    page.evaluate(  # at the first word, whatever the server's speed
        """() => new MutationObserver((_, observer) => {
            if (!document.querySelector('.output').textContent) return;
            observer.disconnect();
            [...document.querySelectorAll('button')].find((b) => b.textContent === 'Stop').click();
        }).observe(document.querySelector('.output'), {subtree: true, childList: true, characterData: true})"""
    )
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    expect(answers(page)).not_to_have_text("")
    expect(page.get_by_role("button", name="Translate", exact=True)).to_be_enabled()


def test_a_column_that_is_taken_away_frees_its_place(page: Page, service: Service) -> None:
    def num_cancelled() -> float:
        counted = re.search(r"^dragoman_engine_cancelled_total (\S+)", metrics(), re.MULTILINE)
        assert counted
        return float(counted[1])

    def metrics() -> str:
        return service.client.get("/metrics").text

    before = num_cancelled()
    page.goto("#/translate?compare=base,yoda%401")
    source(page).fill(TEXT * 20)
    page.get_by_text("Options").click()
    page.get_by_label("Longest answer").fill("1000")
    page.get_by_label("Longest answer").press("Tab")
    page.evaluate(  # at the first word, whatever the server's speed
        """() => new MutationObserver((_, observer) => {
            if (!document.querySelector('[data-ref=base] .output').textContent) return;
            observer.disconnect();
            document.querySelector('.chip [value=base]').click();
        }).observe(document.querySelector('[data-ref=base] .output'), {subtree: true, childList: true, characterData: true})"""
    )
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.locator("[data-ref=base]")).to_have_count(0)
    wait_until(lambda: num_cancelled() == before + 1, TIMEOUT_MS / 1000, "its stream goes on")
    expect(page.locator(".result-foot")).to_contain_text(
        "yoda@1 · "
    )  # the other one is not disturbed
    expect(page.get_by_role("button", name="Translate", exact=True)).to_be_enabled()


def test_errors_say_what_to_do(page: Page) -> None:
    page.goto("#/translate?with=yoda")
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("write or paste a text")
    source(page).fill("x" * 30_000)
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("at most 20,000")
    page.route("**/translate", lambda route: route.abort())
    source(page).fill(TEXT)
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(source(page)).to_have_value(TEXT)


def test_the_limits_are_the_servers(page: Page, service: Service) -> None:
    page.goto("#/translate?with=yoda")
    page.get_by_text("Options").click()
    limits = service.get("/frontend/settings")
    for label, name in (("Alternatives", "maxAlternatives"), ("Longest answer", "maxNewTokens")):
        expect(page.get_by_label(label)).to_have_attribute("max", str(limits[name]))
    page.get_by_label("Alternatives").fill("8")
    page.get_by_label("Alternatives").press("Tab")

    smaller = limits | {"charLimit": 10, "maxAlternatives": 3, "maxNewTokens": 50}
    page.route("**/frontend/settings", lambda route: route.fulfill(json=smaller))
    page.reload()
    page.get_by_text("Options").click()
    expect(page.get_by_label("Alternatives")).to_have_value("3")
    source(page).fill("I see.")
    expect(page.get_by_text("characters", exact=False)).to_have_count(0)
    source(page).fill("𠀀" * 10)  # twenty to JavaScript
    expect(page.get_by_text("10 of 10 characters")).to_be_visible()
    expect(source(page)).not_to_have_attribute("aria-invalid", "true")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.method))
    source(page).fill(TEXT)
    expect(source(page)).to_have_attribute("aria-invalid", "true")
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text(f"{len(TEXT)} characters")
    expect(source(page)).to_be_focused()
    source(page).fill("I see.")
    page.get_by_label("Longest answer").fill("51")
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.get_by_label("Longest answer")).to_be_focused()
    assert asked == []


def test_without_the_servers_limits_its_refusal_is_shown(page: Page) -> None:
    page.route("**/frontend/settings", lambda route: route.fulfill(status=404, json={}))
    page.goto("#/translate?with=yoda")
    source(page).fill("x" * 30_000)
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("at most 20000")
    source(page).fill(TEXT)
    page.get_by_text("Options").click()
    page.get_by_label("Alternatives").fill("99")
    page.get_by_label("Alternatives").press("Tab")
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("at most 8")


def test_the_interface_speaks_chinese(page: Page) -> None:
    page.goto("")
    page.get_by_label("Language of this page").select_option("zh")
    expect(page.get_by_role("link", name="训练")).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    page.reload()
    expect(page.get_by_role("button", name="翻译", exact=True)).to_be_visible()
