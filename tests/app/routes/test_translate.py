"""POST /translate: LibreTranslate's shapes, adapters, decoding, streaming, and everything that is refused."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from core.adapter_version import WEIGHTS_FILE
from core.settings import Settings

TEXT = "The rain has stopped and the river is quiet."


def ask(client: TestClient, **body: Any) -> Any:
    response = client.post("/translate", json={"q": TEXT, **body})
    assert response.status_code == 200, response.text
    return response.json()


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["error"] == body["detail"], "LibreTranslate's clients look for `error`"
    return body


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_one_text(client: TestClient) -> None:
    body = ask(client, adapter="base")
    assert body["translatedText"] == TEXT, "the bare base repeats a plain sentence"
    assert body["adapter"] == "base"
    assert body["finish_reason"] == "stop"
    assert body["usage"]["prompt_tokens"] > 5
    assert body["usage"]["completion_tokens"] > 5
    assert set(body) == {"translatedText", "adapter", "usage", "finish_reason"}


def test_a_list_keeps_its_order_and_what_has_no_words(client: TestClient) -> None:
    texts = [TEXT, "...", "The old man waits.", " \n", "12"]
    body = ask(client, q=texts, adapter="base")
    assert len(body["translatedText"]) == len(body["finish_reason"]) == 5
    assert body["translatedText"][:2] == [TEXT, "..."]
    assert body["translatedText"][3] == " \n"
    singles = [ask(client, q=t, adapter="base")["translatedText"] for t in texts]
    assert body["translatedText"] == singles


@pytest.mark.parametrize("ref", ["pirate", "pirate@1"])
def test_an_adapter_by_name_or_version(client: TestClient, ref: str) -> None:
    body = ask(client, adapter=ref)
    assert body["adapter"] == "pirate@1"
    assert body["translatedText"] != TEXT


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("en", "en-x-pirate", "pirate@1"),
        ("EN", "EN-X-PIRATE", "pirate@1"),
        ("lzh", "zh", "modern@1"),
        ("lzh", "zh-Hans", "modern@1"),
        ("de", "en", "german@1"),
    ],
)
def test_a_language_pair_chooses_the_adapter(
    client: TestClient, source: str, target: str, expected: str
) -> None:
    body = ask(client, source=source, target=target, max_new_tokens=2)
    assert body["adapter"] == expected
    assert "detectedLanguage" not in body


def test_source_auto_detects_and_says_so(client: TestClient) -> None:
    body = ask(client, q="王怒而去，遂不复见。", source="auto", target="zh", max_new_tokens=2)
    assert body["adapter"] == "modern@1"
    assert body["detectedLanguage"]["language"] == "zh"
    assert 0 < body["detectedLanguage"]["confidence"] <= 100
    body = ask(client, q=[TEXT, TEXT], source="auto", target="en-x-pirate", max_new_tokens=2)
    assert [d["language"] for d in body["detectedLanguage"]] == ["en", "en"]


def test_a_form_is_as_good_as_json(client: TestClient) -> None:
    form = {"q": TEXT, "source": "en", "target": "en-x-pirate", "format": "text", "api_key": ""}
    response = client.post("/translate", data=form)
    assert response.status_code == 200, response.text
    expected = ask(client, source="en", target="en-x-pirate")
    assert response.json() == expected
    several = client.post("/translate", data={"q": ["One.", "Two."], "adapter": "base"})
    assert several.json()["translatedText"] == ["One.", "Two."]


def test_html_keeps_its_markup(client: TestClient) -> None:
    html = f"<p>{TEXT} <b>The old man waits.</b></p><script>x = 1</script>"
    body = ask(client, q=html, adapter="base", format="html", alternatives=2)
    assert body["translatedText"] == html
    assert body["alternatives"] == []


def test_alternatives_differ(client: TestClient) -> None:
    body = ask(client, adapter="pirate", alternatives=3, temperature=0, seed=1)
    assert 1 <= len(body["alternatives"]) <= 3
    assert body["translatedText"] not in body["alternatives"]
    assert len(set(body["alternatives"])) == len(body["alternatives"])
    assert body["translatedText"] == ask(client, adapter="pirate")["translatedText"]


def test_decoding_options(client: TestClient) -> None:
    short = ask(client, adapter="base", max_new_tokens=3)
    assert short["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 3
    cut = ask(client, adapter="base", stop=[" river"])
    assert cut["translatedText"] == "The rain has stopped and the"
    assert cut["finish_reason"] == "stop"
    assert ask(client, adapter="base", stop="rain")["translatedText"] == "The "
    hot = {"adapter": "pirate", "temperature": 2.0, "max_new_tokens": 20}
    first, second, other = (ask(client, **hot, seed=s)["translatedText"] for s in (5, 5, 6))
    assert first == second != other


@pytest.mark.parametrize("stop", [[], [" river"]])
def test_stream_ends_in_the_answer_that_a_plain_call_gives(
    client: TestClient, stop: list[str]
) -> None:
    body = {"q": [TEXT, "...", "The old man waits."], "adapter": "base", "stop": stop}
    expected = ask(client, **body)
    response = client.post("/translate", json=body | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, (last, answer) = events(response.text)
    assert last == "done"
    assert answer["translatedText"] == expected["translatedText"]
    assert answer["adapter"] == expected["adapter"]
    assert {kind for kind, _ in parts} == {"token"}
    for index, text in enumerate(expected["translatedText"]):
        assert "".join(p["text"] for _, p in parts if p["index"] == index) == text
    assert sum(p["index"] == 0 for _, p in parts) > 2, "it came in one piece"


def test_an_unknown_adapter_is_never_silently_the_base(client: TestClient) -> None:
    response = client.post("/translate", json={"q": TEXT, "adapter": "nobody"})
    body = problem(response, 404, "adapter_not_found")
    assert {"pirate", "modern", "german"} <= set(body["adapters"])
    assert "'nobody'" in body["detail"]
    assert "pirate" in body["detail"]
    for ref in ("pirate@9", "pirate@", "pirate@x", "../pirate", "pirate@1/../../x", "Pirate", "@1"):
        response = client.post("/translate", json={"q": TEXT, "adapter": ref})
        problem(response, 404, "adapter_not_found")


def test_an_unknown_pair_lists_what_there_is(client: TestClient) -> None:
    response = client.post("/translate", json={"q": TEXT, "source": "en", "target": "tlh"})
    body = problem(response, 404, "language_pair_not_found")
    assert "pirate (en to en-x-pirate)" in body["detail"]


def test_an_adapter_of_another_base_is_refused(client: TestClient) -> None:
    response = client.post("/translate", json={"q": TEXT, "adapter": "foreign"})
    detail = problem(response, 422, "adapter_for_other_base")["detail"]
    assert "foreign@1 was trained on another base model" in detail


@pytest.mark.parametrize(
    ("body", "code", "word"),
    [
        ({"q": ""}, "q_missing", "q is empty"),
        ({"q": []}, "q_missing", "q is empty"),
        ({"q": ["x", ""]}, "q_missing", "q is empty"),
        ({}, "invalid", "q: Field required"),
        ({"q": 5}, "invalid", "got 5"),
        ({"q": None}, "invalid", "got None"),
        ({"q": {"a": 1}}, "invalid", "dict of 1"),
        ({"q": ["x", 7]}, "invalid", "got 7"),
        ({"q": "a\x00b"}, "invalid", "NUL"),
        ({"q": ["x"] * 9}, "batch_too_large", "at most 8"),
        ({"q": "x", "adpater": "yoda"}, "invalid", "adpater"),
        ({"q": "x", "temperature": -1}, "invalid", "greater than or equal to 0"),
        ({"q": "x", "temperature": "hot"}, "invalid", "'hot'"),
        ({"q": "x", "top_p": 0}, "invalid", "top_p"),
        ({"q": "x", "top_k": 257}, "invalid", "256"),
        ({"q": "x", "seed": -1}, "invalid", "seed"),
        ({"q": "x", "format": "md"}, "invalid", "'text' or 'html'"),
        ({"q": "x", "alternatives": 9}, "too_many_alternatives", "at most 8"),
        ({"q": "x", "alternatives": -1}, "invalid", "alternatives"),
        ({"q": "x", "stop": "x" * 257}, "invalid", "at most 256"),
        ({"q": "x", "stop": ["x"] * 17}, "invalid", "at most 16"),
        ({"q": "x", "max_new_tokens": 0}, "invalid", "max_new_tokens"),
        ({"q": "x", "max_new_tokens": 99999}, "max_new_tokens_too_large", "1 to 1024"),
        ({"q": "x", "adapter": 3}, "invalid", "got 3"),
        ({"q": "x", "adapter": None}, "adapter_missing", "pirate"),
        ({"q": "x", "adapter": None}, "adapter_missing", ": adapter, source and target are all missing"),
        ({"q": "x", "adapter": None, "source": "en"}, "adapter_missing", ": target is missing"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_name(
    client: TestClient, body: dict[str, Any], code: str, word: str
) -> None:
    response = client.post("/translate", json={"adapter": "base", **body})
    assert word in problem(response, 422, code)["detail"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed"),
        (b"", "application/json", 400, "malformed"),
        (b'{"q": "\xff"}', "application/json", 400, "malformed"),
        (b'{"q": "x", "temperature": NaN}', "application/json", 400, "malformed"),
        (b'{"q": "x", "temperature": 1e999}', "application/json", 422, "invalid"),
        (b'{"q": "\\ud800"}', "application/json", 422, "invalid"),
        (b'{"\\ud800": "x"}', "application/json", 422, "invalid"),
        (b'["x"]', "application/json", 422, "invalid"),
        (b"null", "application/json", 422, "invalid"),
        (b"[" * 100_000, "application/json", 400, "malformed"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", 400, "malformed"),
        (b"q=x", "text/plain", 415, "unsupported_media_type"),
        (b"--x", "multipart/form-data", 400, "malformed"),
        (b"q=%00&adapter=base", "application/x-www-form-urlencoded", 422, "invalid"),
    ],
)
def test_bad_bodies(client: TestClient, content: bytes, kind: str, status: int, code: str) -> None:
    response = client.post("/translate", content=content, headers={"content-type": kind})
    problem(response, status, code)


def test_ten_megabytes_are_too_large(client: TestClient) -> None:
    response = client.post("/translate", json={"q": "x" * 10_000_000, "adapter": "base"})
    assert "2,097,152 bytes" in problem(response, 413, "too_large")["detail"]
    response = client.post("/translate", json={"q": "x" * 2001, "adapter": "base"})
    assert "at most 2000" in problem(response, 413, "text_too_long")["detail"]


def test_prompt_and_output_longer_than_the_context(client: TestClient) -> None:
    response = client.post(
        "/translate", json={"q": "𝔘" * 1900, "adapter": "base", "max_new_tokens": 1000}
    )
    assert "4096 tokens that fit" in problem(response, 422, "text_too_long")["detail"]


def test_a_stream_ends_with_the_alternatives(client: TestClient) -> None:
    body = {"q": [TEXT, "...", "So it is."], "adapter": "pirate", "alternatives": 2, "seed": 1}
    response = client.post("/translate", json=body | {"stream": True})
    *parts, (kind, done) = events(response.text)
    assert (kind, done) == ("done", client.post("/translate", json=body).json())
    for index, text in enumerate(done["translatedText"]):
        assert "".join(part["text"] for _, part in parts if part["index"] == index) == text


def test_a_fault_found_before_the_stream_begins_has_a_status(client: TestClient) -> None:
    body = {"q": "𝔘" * 1900, "adapter": "base", "max_new_tokens": 1000, "stream": True}
    problem(client.post("/translate", json=body), 422, "text_too_long")


@pytest.fixture
def torn_adapter(app_settings: Settings) -> Iterator[str]:
    """An adapter whose weights are cut off, which shows only when it is loaded."""
    adapters = app_settings.data_dir / "adapters"
    shutil.copytree(adapters / "pirate", adapters / "torn")
    weights = adapters / "torn" / "versions" / "1" / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:100])
    yield "torn"
    shutil.rmtree(adapters / "torn")


def test_a_fault_found_after_the_stream_began_is_an_event(
    client: TestClient, torn_adapter: str
) -> None:
    body = {"q": TEXT, "adapter": torn_adapter, "stream": True}
    (kind, data), *rest = events(client.post("/translate", json=body).text)
    assert (kind, data["code"], rest) == ("error", "adapter_unusable", [])


def test_what_html_cannot_be(client: TestClient) -> None:
    response = client.post("/translate", json={"q": "<![x >", "adapter": "base", "format": "html"})
    problem(response, 422, "html_invalid")


def test_html_holds_more_texts_than_may_wait(client: TestClient) -> None:
    """Said to be too many, and not that the queue is full, which would be asked again for ever."""
    html = ["<b>a</b>" * 200] * 6
    response = client.post("/translate", json={"q": html, "adapter": "base", "format": "html"})
    assert "1200 pieces" in problem(response, 422, "batch_too_large")["detail"]


@pytest.mark.parametrize("charset", ["undefined", "punycode"])
def test_a_form_in_a_charset_that_cannot_be(client: TestClient, charset: str) -> None:
    content = b'--B\r\nContent-Disposition: form-data; name="q"\r\n\r\na.x\r\n--B--\r\n'
    kind = f"multipart/form-data; boundary=B; charset={charset}"
    response = client.post("/translate", content=content, headers={"content-type": kind})
    problem(response, 400, "malformed")


def test_a_file_is_not_translated_here(client: TestClient) -> None:
    response = client.post("/translate", files={"q": ("a.txt", b"x")})
    assert "send its text" in problem(response, 422, "invalid")["detail"]


@pytest.mark.parametrize("more_body", [False, True])
def test_a_client_that_goes_away_is_no_failure(client: TestClient, more_body: bool) -> None:
    """What it asked for is cancelled, without an exception that the server would log as its own."""
    body = json.dumps({"q": TEXT, "adapter": "base", "temperature": 5, "max_new_tokens": 1000})
    incoming: list[dict[str, Any]] = [
        {"type": "http.request", "body": body.encode(), "more_body": more_body},
        {"type": "http.disconnect"},
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/translate",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    assert client.portal is not None
    client.portal.call(client.app, scope, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 499
