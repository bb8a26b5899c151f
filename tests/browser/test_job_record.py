"""A job's page, where answers come late."""

from playwright.sync_api import Page, expect


def is_asked(page: Page, times: int) -> bool:
    """Waits until the record was asked for so often. Not wait_for_function: the page's policy forbids what that does."""
    wait = "async (n) => { for (let i = 0; i < 3000 && asked.length < n; i++) await new Promise((end) => setTimeout(end, 20)); return asked.length; }"
    return bool(page.evaluate(wait, times) == times)


def test_a_record_that_was_long_on_its_way_hides_nothing_newer(page: Page) -> None:
    """Neither the points that came meanwhile, nor a record that was asked for later."""
    page.goto("#/adapters")
    page.evaluate(
        """async () => {
            const { mount } = await import("/static/js/views/job.js");
            const json = (body) => new Response(JSON.stringify(body));
            window.point = (step) => ({ step, epoch: 0, loss: 1 / step });
            window.record = (status, ...steps) => ({
                id: "slow", adapter: "slow", adapter_version: null, status, attempt: 1, config: {}, warnings: [], checkpoints: [],
                created_at: "2030-01-01T00:00:00Z", evaluation: null, error: null,
                progress: { step: steps.length, total_steps: 9, percent: 0, eta_seconds: null, tokens_per_second: null },
                loss_curve: { train: steps.map(window.point), eval: [] },
            });
            window.asked = [];
            let first = true;
            window.fetch = async (path) => {
                if (path === "jobs/slow/events") return new Response(new ReadableStream({ start(c) { window.stream = c; } }));
                if (path !== "jobs/slow") return json(window.record("running"));
                if (!first) return new Promise((resolve) => window.asked.push((body) => resolve(json(body))));
                first = false;
                return json(window.record("running", 1));
            };
            window.tell = (event, data) => window.stream.enqueue(new TextEncoder().encode(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`));
            mount(document.querySelector("main"), { path: ["slow"], signal: new AbortController().signal });
        }"""
    )
    plot = page.get_by_role("slider", name="Loss").first
    expect(plot).to_have_attribute("aria-valuemax", "1")
    page.evaluate("tell('status', { status: 'running' })")
    assert is_asked(page, 1)
    page.evaluate("tell('metrics', { progress: {}, train: point(3) })")
    expect(plot).to_have_attribute("aria-valuemax", "3")
    page.evaluate("asked[0](record('evaluating', 1, 2))")
    expect(page.locator("h1 .status")).to_have_text("evaluating")
    plot.focus()
    for key, step in (("Home", "1"), ("ArrowRight", "2"), ("ArrowRight", "3")):
        page.keyboard.press(key)
        expect(plot).to_have_attribute("aria-valuenow", step)

    page.evaluate("tell('evaluation', {})")
    assert is_asked(page, 2)
    page.evaluate("tell('done', { status: 'succeeded' })")
    assert is_asked(page, 3)
    page.evaluate("asked[2](record('succeeded', 1, 2, 3))")
    expect(page.locator("h1 .status")).to_have_text("succeeded")
    page.evaluate(
        "async () => { asked[1](record('evaluating', 1)); await new Promise((end) => setTimeout(end)); }"
    )
    assert page.locator("h1 .status").text_content() == "succeeded"
