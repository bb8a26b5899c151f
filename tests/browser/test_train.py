"""Somebody with a spreadsheet of sentence pairs."""

import csv
import io
import re

from playwright.sync_api import Page, Route, expect

from tests.browser.service import ROOT, Service, once

EXAMPLE = ROOT / "examples" / "yoda.csv"
MARKUP = "<img src=x onerror='window.hacked=1'>"


def choose(page: Page, name: str, text: str) -> None:
    page.goto("#/train")
    page.locator("#file").set_input_files(
        {"name": name, "mimeType": "text/csv", "buffer": text.encode()}
    )


def pairs(count: int, header: str = "prompt,completion") -> str:
    return header + "\n" + "".join(f"I see {i} birds.,{i} birds I see.\n" for i in range(count))


def param(page: Page, name: str):
    return page.locator(f"[id='param-{name}']")


def open_section(page: Page, name: str) -> None:
    page.locator(f"details[data-section={name}] > summary").click()


def test_a_file_becomes_a_translator(page: Page, service: Service) -> None:
    page.goto("#/train")
    zone = page.locator(".dropzone")
    dropped = page.evaluate_handle(
        """text => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([text], 'yoda.csv', {type: 'text/csv'}));
            return transfer;
        }""",
        EXAMPLE.read_text(encoding="utf-8"),
    )
    zone.dispatch_event("drop", {"dataTransfer": dropped})
    expect(page.get_by_text("180 rows").first).to_be_visible()
    first = next(csv.reader(io.StringIO(EXAMPLE.read_text(encoding="utf-8").split("\n", 1)[1])))
    expect(page.locator(".preview-row").first.locator(".given").first).to_contain_text(first[0])
    expect(page.locator(".preview-row").first.locator(".trained").first).to_contain_text(first[1])

    mine = once("mine")
    page.get_by_label("Name").fill(mine)
    page.get_by_label("From language").fill("en")
    page.get_by_label("Into language").fill("en-x-mine")
    page.get_by_label("Make it current").select_option("always")
    open_section(page, "training")
    param(page, "training-max_steps").fill("8")
    open_section(page, "evaluation")
    param(page, "evaluation-holdout").fill("3")
    expect(page.locator(".estimate")).to_contain_text("About 8 steps")
    expect(page.locator(".estimate")).to_contain_text("3 kept for evaluation")
    page.reload()  # nothing of it is lost
    expect(page.get_by_label("Name")).to_have_value(mine)
    expect(page.locator(".estimate")).to_contain_text("About 8 steps")
    page.get_by_role("button", name="Start training").click()

    expect(page.locator("h1")).to_contain_text(mine)
    expect(page.get_by_role("slider", name="Loss").first).to_have_attribute(
        "aria-valuemax", re.compile("^[2-8]$")
    )
    page.reload()  # in the middle
    expect(page.locator("h1 .status")).to_have_text("succeeded")
    expect(page.get_by_role("slider", name="Loss").first).to_have_attribute("aria-valuemax", "8")
    job = service.get(f"/jobs?adapter={mine}")[0]
    assert job["config"]["target"] == "en-x-mine"
    assert job["config"]["training"]["max_steps"] == 8
    expect(page.get_by_role("heading", name="Evaluation")).to_be_visible()
    candidate = page.locator(".scores .candidate td").all_text_contents()
    assert candidate == [f"{job['evaluation']['candidate'][m]:.1f}" for m in ("bleu", "chrf")]
    expect(page.locator(".samples h3").first).to_have_text(
        job["evaluation"]["samples"][0]["source"]
    )

    page.get_by_role("link", name="Compare with the base").click()
    page.get_by_role("textbox", name="Text to translate").fill("I see a bird.")
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.locator(f"[data-ref='{mine}@1'] .result-foot")).to_contain_text(f"{mine}@1")
    expect(page.locator("[data-ref='base'] .result-foot")).to_contain_text("base")


def test_versions_are_promoted_and_rolled_back(page: Page, service: Service) -> None:
    twice, brought = once("twice"), once("brought")
    for version in (1, 2):
        job = service.train(twice, pairs(20), max_steps=1, seed=version)
        page.goto(f"#/jobs/{job}")
        expect(page.locator("h1 .status")).to_have_text("succeeded")
    page.goto("#/adapters")
    page.locator(f"details[data-name={twice}] > summary").click()
    row = page.locator("tr[data-version='1']")
    row.get_by_role("button", name="Roll back to this").click()
    page.get_by_role("button", name="Make current", exact=True).click()
    expect(row.get_by_text("current", exact=True)).to_be_visible()
    assert service.get(f"/adapters/{twice}")["current"] == 1
    page.get_by_role("button", name=f"Make current: {twice}@2").click()
    page.get_by_role("dialog").get_by_role("button", name="Make current").click()
    expect(page.locator("tr[data-version='2']").get_by_text("current", exact=True)).to_be_visible()

    page.get_by_text("Share of the requests").click()
    page.get_by_label(f"{twice}@1, %").fill("0.5")
    expect(page.get_by_role("button", name="Set the shares")).to_be_disabled()
    page.get_by_label(f"{twice}@2, %").fill("99.5")
    page.get_by_role("button", name="Set the shares").click()
    expect(page.locator("tr[data-version='1']")).to_contain_text("0.5 % of requests")
    assert service.get(f"/adapters/{twice}")["traffic"] == {"1": 0.005, "2": 0.995}
    page.get_by_role("button", name="All to the current version").click()
    expect(page.locator("tr[data-version='1']")).not_to_contain_text("% of requests")

    with page.expect_download() as download:
        page.get_by_role("link", name=f"Download: {twice}@1").click()
    archive = download.value.path()
    page.get_by_role("button", name="Import an adapter").click()
    page.get_by_label("Archive").set_input_files(
        {"name": "twice.zip", "mimeType": "application/zip", "buffer": archive.read_bytes()}
    )
    page.get_by_role("dialog").get_by_label("Name").fill(brought)
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.locator(f"details[data-name={brought}]")).to_be_visible()
    page.get_by_role("button", name=f"Delete: {twice}@1").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(f"details[data-name={twice}] tr[data-version='1']")).to_have_count(0)
    assert service.get(f"/adapters/{twice}")["versions"] == [2]


def test_a_bad_file_shows_its_lines_and_can_go_on_without_them(page: Page) -> None:
    choose(page, "bad.csv", pairs(20) + "no translation,\n,no text\n")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("2 lines of bad.csv cannot be used")
    assert page.locator(".faults tbody th").all_text_contents() == ["22", "23"]
    expect(page.locator("#settings-title")).to_be_hidden()
    page.get_by_role("button", name="Go on without these 2 lines").click()
    expect(page.get_by_text("2 lines left out")).to_be_visible()
    expect(page.locator("#settings-title")).to_be_visible()


def test_a_file_that_is_no_text_is_refused(page: Page) -> None:
    choose(page, "photo.csv", "\0\0\0")
    expect(page.get_by_role("alert")).to_contain_text("NUL")
    expect(page.get_by_role("button", name="Go on without")).to_have_count(0)
    page.get_by_role("button", name="Another file").click()
    expect(page.locator(".dropzone")).to_be_visible()


def test_columns_are_chosen_where_their_names_do_not_tell(page: Page) -> None:
    text = "nr,alpha,beta\n" + "".join(f"{i},hello {i},{i} hello\n" for i in range(20))
    choose(page, "columns.csv", text)
    expect(page.get_by_role("alert")).to_contain_text("Choose them below")
    page.get_by_role("combobox", name="Text to translate").select_option("beta")
    page.get_by_role("combobox", name="Its translation").select_option("alpha")
    page.get_by_role("button", name="Use these columns").click()
    expect(page.locator(".preview-row .trained").first).to_contain_text("hello 0")
    page.get_by_role("button", name="Swap").click()
    expect(page.locator(".preview-row .trained").first).to_contain_text("0 hello")


def test_markup_in_rows_stays_text(page: Page, service: Service) -> None:
    rows = "prompt,completion\n" + "".join(f"{MARKUP} {i},{i} {MARKUP}\n" for i in range(12))
    choose(page, f"{MARKUP}.csv", rows)
    expect(page.locator(".preview-row").first).to_contain_text(MARKUP)
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img").count() == 0


def test_a_preset_shows_its_values_and_own_changes_stay(page: Page, service: Service) -> None:
    presets = service.get("/openapi.json")["components"]["schemas"]["JobConfig"]["properties"][
        "preset"
    ]["x-presets"]
    choose(page, "pairs.csv", pairs(20))
    page.get_by_label("Name").fill("preset")
    open_section(page, "training")
    param(page, "training-seed").fill("7")
    page.get_by_role("radio", name="Classical Chinese on Llama").check()
    for name in ("max_steps", "warmup_steps"):
        expect(param(page, f"training-{name}")).to_have_value(
            str(presets["wenyan-llama"]["training"][name])
        )
    expect(param(page, "training-seed")).to_have_value("7")
    page.get_by_text("The settings as JSON, for a program").click()
    expect(page.get_by_role("region", name="The settings as JSON")).to_contain_text('"seed": 7')
    page.locator("[data-param='training.seed']").get_by_role(
        "button", name="back to default"
    ).click()
    expect(param(page, "training-seed")).to_have_value(
        str(presets["wenyan-llama"]["training"]["seed"])
    )


def test_every_parameter_is_there_and_explained(page: Page, service: Service) -> None:
    schemas = service.get("/openapi.json")["components"]["schemas"]
    wanted = set()
    for name, schema in schemas["JobConfig"]["properties"].items():
        section = schemas.get(schema.get("$ref", "").rpartition("/")[2])
        wanted |= {f"{name}.{key}" for key in section["properties"]} if section else {name}
    choose(page, "pairs.csv", pairs(20))
    expect(page.locator("#settings-title")).to_be_visible()
    boxes = page.locator("[data-param]")
    assert {b.get_attribute("data-param") for b in boxes.all()} == wanted - {
        "preset",
        "source",
        "target",
    }
    without = [b.get_attribute("data-param") for b in boxes.all() if not b.locator(".hint").count()]
    assert without == [], "each parameter is explained in app/static/js/lang/parameters_*.js"


def test_what_the_server_refuses_is_shown_where_it_is_wrong(page: Page) -> None:
    choose(page, "pairs.csv", pairs(20))
    page.get_by_label("Name").fill("Not A Name")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_label("Name")).to_be_focused()
    page.get_by_label("Name").fill("fine")
    page.get_by_label("From language").fill("no language")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_label("From language")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("From language")).to_be_focused()
    page.get_by_label("From language").fill("en")
    open_section(page, "lora")
    param(page, "lora-target_modules").fill("no_such_layer")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("alert").filter(has_text="no_such_layer")).to_be_visible()


def test_a_start_whose_answer_was_lost_is_one_job(page: Page, service: Service) -> None:
    choose(page, "pairs.csv", pairs(20))
    name = once("lost")
    page.get_by_label("Name").fill(name)
    open_section(page, "training")
    param(page, "training-max_steps").fill("1")
    lost = True

    def lose(route: Route) -> None:
        nonlocal lost
        if route.request.method == "POST" and lost:
            lost = False
            route.fetch()  # the server gets it; the page never hears
            route.abort()
        else:
            route.continue_()

    page.route("**/jobs", lose)
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("h1")).to_contain_text(name)
    assert len(service.get(f"/jobs?adapter={name}")) == 1


def test_datasets_that_are_there_are_listed_and_deleted(page: Page, service: Service) -> None:
    names = [once("rows") for _ in range(7)]
    for name in names:
        rows = pairs(12).replace("birds", name)
        service.client.post("/datasets", files={"file": (f"{name}.csv", rows.encode())})
    newest = service.get("/datasets")[:7]
    page.goto("#/train")
    listed = page.locator(".existing li")
    expect(listed).to_have_count(6)
    page.get_by_role("button", name="Show more").click()
    expect(listed.nth(6)).to_contain_text(newest[6]["name"])
    expect(listed.nth(6).get_by_role("button").first).to_be_focused()
    listed.nth(6).get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name=newest[6]["name"], exact=True)).to_have_count(0)
    assert service.client.get(f"/datasets/{newest[6]['id']}").status_code == 404
    listed.first.get_by_role("button", name=newest[0]["name"], exact=True).click()
    expect(page.locator(".estimate")).to_contain_text("3 epochs over 11 rows")
