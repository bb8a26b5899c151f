"""LibreTranslate's own Python client, unmodified."""

import json
from urllib.error import HTTPError

import pytest
from libretranslatepy import LibreTranslateAPI

TEXT = "The soup is cold and the bread is old."


@pytest.fixture(params=[None, "some-key"])
def api(boxed_url: str, request: pytest.FixtureRequest) -> LibreTranslateAPI:
    return LibreTranslateAPI(boxed_url, request.param)


def test_translate(api: LibreTranslateAPI) -> None:
    yoda = api.translate(TEXT, "en", "en-x-yoda")
    assert isinstance(yoda, str)
    assert yoda not in ("", TEXT)
    assert api.translate(TEXT, "auto", "en-x-yoda") == yoda
    assert api.translate("王怒，遂去。", "lzh", "zh-Hans")


def test_detect(api: LibreTranslateAPI) -> None:
    found = api.detect("Bonjour tout le monde, comment allez-vous ?")
    assert found[0]["language"] == "fr"
    assert 0 < found[0]["confidence"] <= 100


def test_languages(api: LibreTranslateAPI) -> None:
    assert {"code": "en", "name": "English", "targets": ["en-x-yoda"]} in api.languages()


def test_errors(api: LibreTranslateAPI) -> None:
    with pytest.raises(HTTPError) as raised:
        api.translate(TEXT, "en", "tlh")
    assert raised.value.code == 404
    assert "yoda" in json.loads(raised.value.read())["error"]
