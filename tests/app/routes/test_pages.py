import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

STATIC = Path(__file__).resolve().parents[3] / "app" / "static"


def test_the_page_brings_all_that_it_needs_and_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert client.head("/").status_code == 200
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get(f"/{path}").status_code == 200, path
    for file in STATIC.rglob("*.js"):
        text = file.read_text(encoding="utf-8")
        for name in re.findall(r'^import .*? from "(.+?)";|^} from "(.+?)";', text, re.M):
            assert (file.parent / "".join(name)).is_file(), f"{file.name} imports {name}"
        assert "innerHTML" not in text
        assert not re.search(r'"https?://(?!www\.w3\.org)', text)


def test_docs_bring_all_that_they_need_and_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in page.text
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    served = {path: client.get(f"/{path}") for path in files}
    assert {path for path, answer in served.items() if answer.status_code != 200} == set()
    assert "SwaggerUIBundle" in served["static/swagger-ui/swagger-ui-bundle.js"].text
    css = served["static/swagger-ui/swagger-ui.css"].text
    assert set(re.findall(r"url\(['\"]?(\w+:)", css)) <= {"data:"}
    assert "@import" not in css
    script = served["static/js/docs.js"].text
    described = re.search(r'url: "(.+?)"', script)
    assert described
    assert client.get(f"/{described[1]}").json()["paths"]
    assert "validatorUrl: null" in script
    assert client.get("/redoc").status_code == 404


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_script_in_the_page_would_not_run(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_files_are_asked_for_again_and_answered_by_their_etag(client: TestClient) -> None:
    first = client.get("/static/js/main.js")
    assert first.headers["content-type"].startswith(("text/javascript", "application/javascript"))
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/static/js/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize(
    "path", ["nope.js", "%2e%2e/main.py", "..%2fmain.py", "js", "", "a" * 5000, "swagger-ui/no.js"]
)
def test_what_is_not_there_is_a_problem(client: TestClient, path: str) -> None:
    answer = client.get(f"/static/{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
