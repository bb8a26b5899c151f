"""What holds for every view: its address, its dialogs, and how it asks again."""

import random
import re

from playwright.sync_api import Page, Route, expect


def test_an_address_of_no_view_shows_the_first(page: Page) -> None:
    for address in ("#/nothing", "#/toString"):
        page.goto(address)
        expect(page.get_by_role("textbox", name="Text to translate")).to_be_visible()


def test_a_dialog_goes_with_its_view(page: Page) -> None:
    page.goto("#/jobs")
    page.goto("#/adapters")
    page.get_by_role("button", name="Import an adapter").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_what_fails_though_the_server_is_there_is_asked_for_at_rest_and_once(page: Page) -> None:
    """As where a filter in the browser, or a proxy, lets some calls through and others not."""
    asked: list[str] = []

    def fail(route: Route) -> None:
        asked.append(route.request.url)
        route.abort()

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        route.continue_()

    adapters = re.compile("/adapters$")
    page.clock.install(time="2030-01-01T00:00:00Z")
    page.clock.pause_at("2030-01-01T01:00:00Z")
    page.route(adapters, fail)
    page.goto("#/translate")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.evaluate("async () => { for (let i = 0; i < 10; i++) await fetch('ready'); }")
    assert len(asked) == 1
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    assert len(asked) == 2
    page.unroute(adapters)
    page.route(adapters, answer)
    page.clock.run_for(3_000)
    expect(page.get_by_role("textbox", name="Text to translate")).to_be_visible()
    assert len(asked) == 3


def test_waiting_leaves_nothing_at_the_signal(page: Page) -> None:
    page.goto("#/adapters")
    left = page.evaluate(
        """async () => {
            const { pause } = await import("/static/js/sse.js");
            const { signal } = new AbortController();
            const listeners = new Set();
            signal.addEventListener = (_, listener) => listeners.add(listener);
            signal.removeEventListener = (_, listener) => listeners.delete(listener);
            for (let i = 0; i < 3; i++) await pause(1, signal);
            return listeners.size;
        }"""
    )
    assert left == 0


def test_the_focus_stays_where_a_list_is_read_again(page: Page) -> None:
    page.goto("#/adapters/yoda")
    page.get_by_role("button", name="Details: yoda@1").focus()
    page.evaluate("dispatchEvent(new Event('dragoman:back'))")
    expect(page.locator("details[data-name=yoda] > summary")).to_be_focused()


def test_languages_are_offered_where_an_adapter_is_imported(page: Page) -> None:
    page.goto("#/adapters")
    page.get_by_role("button", name="Import an adapter").click()
    offered = page.get_by_label("From language").evaluate(
        "input => [...input.list.options].map(o => o.value)"
    )
    assert {"en", "lzh", "zh"} <= set(offered)


def test_figures_have_the_digits_that_python_gives_them(page: Page) -> None:
    """The server's sentences and the command line are Python's: 18.25 is 18.2 there, and 18.45 is 18.4."""
    draw = random.Random(7)
    values = [k / 100 for k in range(-300, 10_001)] + [k / 16 for k in range(-99, 100)]
    values += [draw.uniform(-20, 20) for _ in range(2_000)] + [1e21, 123_456.5, 0.0005]
    page.goto("#/adapters")
    for digits in range(4):
        shown = page.evaluate(
            """async ([values, digits]) => {
                const { number } = await import("/static/js/i18n.js");
                return values.map((value) => number(value, digits));
            }""",
            [values, digits],
        )
        assert shown == [f"{value:z,.{digits}f}" for value in values]


def test_a_verdict_is_told_in_one_set_of_figures(page: Page) -> None:
    scores = {"base": {"bleu": 18.25, "chrf": 65.85}, "candidate": {"bleu": 73.72, "chrf": 81.5}}
    reason = (
        "Made current: its BLEU of 73.7 is 55.47 points above the bare base's 18.2 (p = 0.001)."
    )
    evaluation = {"metric": "bleu", "rows": 18, "against": "base", "gain": 55.47, "p_value": 0.0009}
    page.goto("#/adapters")
    shown = page.evaluate(
        """async (evaluation) => {
            const { evaluationPanel } = await import("/static/js/views/evaluation_panel.js");
            return evaluationPanel(evaluation).map((part) => part.textContent ?? "").join("\\n");
        }""",
        {**evaluation, **scores, "promoted": True, "reason": reason},
    )
    assert reason in shown
    assert "bare base model18.265.8" in shown
    assert "this version73.781.5" in shown
    assert "+55.47 points of BLEU over base. p = 0.001" in shown
