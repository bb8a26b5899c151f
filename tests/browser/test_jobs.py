"""A job that is watched, through reloads and restarts of the server."""

import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Locator, Page, Response, Route, expect

from tests.browser.chromium import TIMEOUT_MS
from tests.browser.service import Service, once, wait_until

ROWS = "prompt,completion\n" + "".join(f"I see {i} birds.,{i} birds I see.\n" for i in range(60))
SEVERAL = re.compile(r"^([3-9]|\d\d+)$")


def last_step(service: Service, job: str) -> int:
    points = service.get(f"/jobs/{job}")["loss_curve"]["train"]
    return int(points[-1]["step"]) if points else 0


def shown_step(plot: Locator) -> int:
    return int(plot.get_attribute("aria-valuemax") or 0)


@pytest.fixture(autouse=True)
def _leave_no_job(service: Service) -> Iterator[None]:
    """A test that fails in the middle must neither keep the next ones waiting nor show its job at its second try."""
    yield
    if not service.is_running:
        service.start()
    for job in service.get("/jobs"):
        service.client.post(f"/jobs/{job['id']}/cancel")
    for job in service.get("/jobs"):
        path = f"/jobs/{job['id']}"
        wait_until(
            lambda path=path: service.get(path)["finished_at"] is not None, 180, "it does not end"
        )
        service.client.delete(path)


def test_the_server_restarts_in_the_middle(page: Page, service: Service) -> None:
    job = service.train("restarted", ROWS, num_train_epochs=500)
    plot = page.get_by_role("slider", name="Loss").first
    page.goto(f"#/jobs/{job}")
    expect(page.locator("h1 .status")).to_have_text("running")
    expect(plot).to_have_attribute("aria-valuemax", SEVERAL)
    other = page.context.new_page()
    other.goto("#/translate")
    service.stop()
    expect(
        page.locator("main").get_by_text("The connection was lost; the job goes on.")
    ).to_be_visible()
    other.get_by_role("link", name="Jobs").click()
    expect(other.get_by_text("No connection to the server")).to_be_visible()
    service.start()
    expect(other.get_by_text("No connection to the server")).to_be_hidden()
    expect(other.get_by_role("row", name="restarted")).to_be_visible()
    expect(page.locator("main").get_by_text("The connection was lost")).to_be_hidden()
    before = last_step(service, job)
    wait_until(lambda: last_step(service, job) != before, TIMEOUT_MS / 1000, "it does not go on")
    reached = last_step(service, job)
    wait_until(  # the same page, with no reload
        lambda: shown_step(plot) >= reached,
        TIMEOUT_MS / 1000,
        "the page does not show how the job goes on",
    )
    expect(page.locator("h1 .status")).to_have_text("running")
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel job").click()
    expect(page.locator("h1 .status")).to_have_text("cancelled")
    wait_until(
        lambda: shown_step(plot) == last_step(service, job),
        TIMEOUT_MS / 1000,
        "the page shows another curve than the job has",
    )
    assert service.get(f"/jobs/{job}")["status"] == "cancelled"


def test_the_list_follows_and_filters(page: Page, service: Service) -> None:
    page.goto("#/jobs")
    job = service.train("listed", ROWS, num_train_epochs=500)
    row = page.get_by_role("row", name="listed")
    expect(row).to_contain_text("running")
    page.get_by_label("Show").select_option("paused")
    expect(row).to_have_count(0)
    page.get_by_label("Show").select_option("")
    row.get_by_role("link").click()
    expect(page.locator("h1")).to_contain_text("listed")
    page.get_by_text("Log", exact=True).click()
    expect(page.locator(".log")).to_contain_text("step 1 of")
    service.client.post(f"/jobs/{job}/cancel")
    expect(page.locator("h1 .status")).to_have_text("cancelled")


def test_a_job_is_paused_and_tried_and_resumed_and_what_it_learnt_is_kept(
    page: Page, service: Service
) -> None:
    name = once("halted")
    job = service.train(name, ROWS, num_train_epochs=500)
    page.goto(f"#/jobs/{job}")
    plot = page.get_by_role("slider", name="Loss").first
    expect(plot).to_have_attribute("aria-valuemax", SEVERAL)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("h1 .status")).to_have_text("paused")
    paused_at = last_step(service, job)
    assert paused_at > 0  # its curve stays to be seen
    step = service.get(f"/jobs/{job}")["checkpoints"][0]["step"]
    page.get_by_role("link", name=f"Try its newest checkpoint (step {step})").click()
    expect(page.get_by_role("checkbox", name=f"paused: {name}, step {step}")).to_be_checked()
    page.get_by_role("textbox", name="Text to translate").fill("I see 7 birds.")
    page.get_by_role("button", name="Translate", exact=True).click()
    answer = page.locator(f'.result[data-ref="job:{job}"]')
    expect(answer.locator(".result-foot")).to_contain_text(f"job:{job}@{step}")
    page.go_back()
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("h1 .status")).to_have_text("running")
    wait_until(lambda: last_step(service, job) > paused_at, TIMEOUT_MS / 1000, "it does not go on")
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_label("Judge and publish").check()
    page.get_by_role("dialog").get_by_role("button", name="Cancel job").click()
    expect(page.get_by_role("link", name="Translate with it")).to_be_visible()
    assert service.get(f"/adapters/{name}")["versions"] == [1]


def test_the_curve_can_be_read_zoomed_and_smoothed(page: Page, service: Service) -> None:
    job = service.train("curve", ROWS, max_steps=12)
    page.goto(f"#/jobs/{job}")
    expect(page.locator("h1 .status")).to_have_text("succeeded")
    losses = [p["loss"] for p in service.get(f"/jobs/{job}")["loss_curve"]["train"]]
    assert len(losses) == 12
    plot = page.get_by_role("slider", name="Loss").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 60, steps=5)
    page.mouse.up()
    expect(page.get_by_role("button", name="Show all").first).to_be_visible()
    plot.focus()
    page.keyboard.press("Home")
    assert 4 <= int(plot.get_attribute("aria-valuenow") or 0) <= 7, "the zoom shows another stretch"
    page.keyboard.press("Escape")
    page.keyboard.press("Home")
    expect(plot).to_have_attribute("aria-valuenow", "1")
    assert f"training {losses[0]:.3g}" in (plot.get_attribute("aria-valuetext") or "")
    assert (
        page.locator(".chart").first.locator(".line.series-train").count() == 2
    )  # legend and curve
    page.get_by_label("smoothing").fill("0.6")
    expect(page.locator(".chart").first.locator(".line.faint")).to_have_count(1)
    page.get_by_label("log scale").check()
    page.locator(".chart-table > summary").first.click()
    expect(page.locator(".chart-table").first.locator("tbody tr")).to_have_count(
        len({p["step"] for c in service.get(f"/jobs/{job}")["loss_curve"].values() for p in c})
    )


def test_an_ended_job_is_tried_again_with_its_settings(page: Page, service: Service) -> None:
    name = once("again")
    job = service.train(name, ROWS, num_holdout=3, max_steps=2, seed=7)
    page.goto(f"#/jobs/{job}")
    expect(page.locator("h1 .status")).to_have_text("succeeded")
    page.get_by_role("link", name="Change the settings and try again").click()
    expect(page.get_by_label("Name")).to_have_value(name)
    expect(page.get_by_label("From language")).to_have_value("")
    expect(page.locator(".estimate")).to_contain_text("About 2 steps")
    expect(page.locator(".estimate")).to_contain_text("3 kept for evaluation")
    expect(page.locator("[id='param-training-seed']")).to_have_value("7")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("h1")).to_contain_text(f"{name}@2")
    first, second = (
        service.get(f"/jobs/{j['id']}")["config"] for j in service.get(f"/jobs?adapter={name}")
    )
    assert first == second


def test_the_focus_stays_with_the_job(page: Page, service: Service) -> None:
    """Without a mouse: an action's button goes once it is done, and the focus must not fall to the page's beginning."""
    job = service.train("focus", ROWS, num_train_epochs=500)
    page.goto(f"#/jobs/{job}")
    expect(page.locator("h1 .status")).to_have_text("running")
    page.get_by_role("button", name="Cancel job").focus()
    with page.expect_response(lambda response: response.url.endswith(f"/jobs/{job}")):
        page.evaluate("dispatchEvent(new Event('dragoman:back'))")
    page.evaluate("new Promise(requestAnimationFrame)")  # what was read is shown
    expect(page.get_by_role("button", name="Cancel job")).to_be_focused()
    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1 .status")).to_have_text("paused")
    expect(page.locator("h1")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Resume")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_have_count(1)
    page.get_by_role("button", name="Keep the job").press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Cancel job")).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Cancel job").focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1 .status")).to_have_text("cancelled")
    expect(page.locator("main")).to_be_focused()


def test_jobs_beyond_one_answer_are_shown_too(page: Page, service: Service) -> None:
    job = service.train("many", ROWS, max_steps=1)
    wait_until(lambda: service.get(f"/jobs/{job}")["finished_at"], TIMEOUT_MS / 1000, "no end")
    pattern = service.get("/jobs")[0]
    jobs = [{**pattern, "id": f"job-{i}"} for i in range(230)]

    def answer(route: Route) -> None:
        asked = parse_qs(urlsplit(route.request.url).query)
        start = int(asked["after"][0].removeprefix("job-")) + 1 if "after" in asked else 0
        limit = int(asked["limit"][0])
        assert limit <= 100
        route.fulfill(json=jobs[start : start + limit])

    page.route("**/jobs?*", answer)
    page.goto("#/jobs")
    for num_shown in range(20, 230, 20):
        expect(page.locator("tbody tr")).to_have_count(num_shown)
        page.get_by_role("button", name="Show more").click()
    expect(page.locator("tbody tr")).to_have_count(230)
    expect(page.get_by_role("button", name="Show more")).to_have_count(0)
    links = page.locator("tbody a").evaluate_all("links => links.map(a => a.hash)")
    assert links == [f"#/jobs/job-{i}" for i in range(230)]


def test_a_job_that_is_not_there_is_said_so(page: Page) -> None:
    page.goto("#/jobs/job-none")
    expect(page.get_by_role("alert")).to_contain_text("job-none")
    page.get_by_role("link", name="All jobs").click()
    expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()


def test_a_connection_that_dies_in_silence_is_made_again(page: Page) -> None:
    """As after a laptop's sleep: nothing comes any more, and nobody says so."""
    page.clock.install()
    page.goto("#/adapters")
    page.evaluate(
        """async () => {
            const { follow } = await import("/static/js/sse.js");
            window.asked = [];
            const real = window.fetch;
            window.fetch = async (path, options) => {
                if (path !== "silent") return real(path, options);
                window.asked.push(options.headers["Last-Event-ID"] ?? "");
                const event = new TextEncoder().encode('id: 7-0\\ndata: {"a": 1}\\n\\n');
                return new Response(new ReadableStream({ start(c) { c.enqueue(event); } }));
            };
            window.leave = new AbortController();
            follow("silent", { signal: window.leave.signal, onEvent: () => false });
        }"""
    )
    assert page.evaluate("window.asked") == [""]
    page.clock.run_for(40_000)
    assert page.evaluate("window.asked") == [""], "heartbeats come every 15 s"
    page.clock.run_for(10_000)
    page.clock.run_for(10_000)
    assert page.evaluate("window.asked.slice(0, 2)") == ["", "7-0"]
    page.evaluate("window.leave.abort()")


def test_a_long_curve_is_drawn_once_for_many_points(page: Page, service: Service) -> None:
    job = service.train(
        "replayed", ROWS, max_steps=60, logging_steps=1, per_device_train_batch_size=1
    )
    page.goto(f"#/jobs/{job}")
    expect(page.locator("h1 .status")).to_have_text("succeeded")
    page.add_init_script(
        """addEventListener("DOMContentLoaded", () => {
            window.drawn = 0;
            new MutationObserver((found) => {
                window.drawn += found.filter((m) => m.target.matches?.("dl.figures") && m.addedNodes.length).length;
            }).observe(document, { subtree: true, childList: true });
        })"""
    )
    records: list[Response] = []

    def is_second(response: Response) -> bool:
        """The page asks for the record at first, and again when all events have come."""
        if response.url.endswith(f"/jobs/{job}"):
            records.append(response)
        return len(records) == 2

    with page.expect_response(is_second):
        page.reload()
    expect(page.get_by_role("slider", name="Loss").first).to_have_attribute("aria-valuemax", "60")
    figures = page.locator("dl.figures > div").count()
    assert 0 < page.evaluate("window.drawn") < 30 * figures
