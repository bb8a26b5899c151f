"""Pages from elsewhere: by a name that was made to lead here, and by forms that they send."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.main import create_app
from core.settings import Settings


def answer(settings: Settings, host: str, origin: str | None = None, path: str = "/") -> Any:
    headers = {"Host": host} | ({"Origin": origin} if origin is not None else {})
    return TestClient(create_app(settings)).get(path, headers=headers)


@pytest.fixture
def guarded(settings: Settings) -> Settings:
    hosts = "Translate.example.org, *.example.com,[2001:db8::1]"
    changes = {"allowed_hosts": hosts, "host": "192.0.2.7"}
    return Settings.model_validate(settings.model_dump() | changes)


@pytest.mark.parametrize(
    "host",
    [
        "translate.example.org",
        "TRANSLATE.EXAMPLE.ORG:8443",
        "a.example.com",
        "b.a.example.com:80",
        "[2001:db8::1]:8000",
        "localhost:8000",
        "127.0.0.1",
        "[::1]:8000",
        "192.0.2.7:8000",
    ],
)
def test_names_that_are_its_own(guarded: Settings, host: str) -> None:
    assert answer(guarded, host).status_code == 200
    assert answer(guarded, host, f"https://{host}").status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.net",
        "example.com",
        "example.org",
        "notexample.com",
        "translate.example.org.evil.net",
        "translate.example.org@evil.net",
        "127.0.0.1.evil.net",
        "a_b.evil.net",
        "[::2]",
        "[",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/health", "/docs", "/nowhere"])
def test_names_that_are_not(guarded: Settings, host: str, path: str) -> None:
    refused = answer(guarded, host, path=path)
    assert (refused.status_code, refused.json()["code"]) == (403, "host_not_allowed")
    assert refused.headers["content-type"] == "application/problem+json"
    detail = refused.json()["detail"]
    assert detail.startswith(f"Host is {host!r}; accepted are localhost")
    assert "translate.example.org" in detail


@pytest.mark.parametrize("origin", ["https://evil.example.net", "null", "", "http://[", "file://"])
def test_forms_of_other_pages(guarded: Settings, origin: str) -> None:
    refused = answer(guarded, "localhost:8000", origin)
    assert (refused.status_code, refused.json()["code"]) == (403, "origin_not_allowed")
    assert repr(origin) in refused.json()["detail"]


def test_it_is_counted(guarded: Settings) -> None:
    client = TestClient(create_app(guarded), base_url="http://localhost")
    client.get("/", headers={"Host": "evil.example.net"})
    counted = client.get("/metrics").text
    assert '{method="GET",route="unmatched",status="403"} 1.0' in counted


def test_any_name_unless_told_otherwise(settings: Settings) -> None:
    for host in ("evil.example.net", "["):
        assert answer(settings, host, "https://evil.example.net").status_code == 200


@pytest.mark.parametrize(
    "hosts", ["http://a.org", "a.org:8000", "*a.org", "a.*", "a.org,", "a b", "*,a.org"]
)
def test_names_that_cannot_be(hosts: str) -> None:
    with pytest.raises(ValidationError, match="allowed_hosts"):
        Settings(_env_file=None, allowed_hosts=hosts)
