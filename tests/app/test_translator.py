"""The product's rule: what is prepared on the event loop itself, and that it is what a thread would prepare."""

import pytest
from fastapi.testclient import TestClient

from app.translator import Options, Translator
from core.adapters import AdapterRegistry
from core.errors import InvalidError
from core.prompt import Prompt, seal_prompt

TEXT = "The rain has stopped and the river is quiet."


@pytest.fixture
def translator(client: TestClient) -> Translator:
    found: Translator = client.app.state.services.serving.translator  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("adapter", ["base", "pirate", "pirate@1"])
def test_a_short_text_is_prepared_at_once_as_a_thread_would(
    translator: Translator, adapter: str
) -> None:
    options = Options(temperature=0.5, seed=3, num_alternatives=1)
    route = translator.resolve(adapter, None, None, [TEXT])
    at_once = translator.prepare_at_once(TEXT, adapter, options)
    assert at_once is not None
    assert at_once == translator.prepare([TEXT], route, options)
    assert at_once.route.ref == ("base" if adapter == "base" else "pirate@1")


def test_what_takes_long_or_reads_files_is_not_done_at_once(translator: Translator) -> None:
    translator.resolve("pirate", None, None, [])
    assert translator.prepare_at_once(TEXT, "pirate", Options()) is not None
    assert translator.prepare_at_once(TEXT * 100, "pirate", Options()) is None
    for adapter in (None, "nobody", "job:job-1", "pirate@2", ""):
        assert translator.prepare_at_once(TEXT, adapter, Options()) is None


def test_a_template_that_repeats_a_text_makes_it_long(
    translator: Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = translator.resolve("pirate", None, None, []).version
    assert version is not None
    prompt = seal_prompt(Prompt(template="{text}" * 1000), translator._tokenizer)
    repeating = version.model_copy(
        update={"seal": version.seal.model_copy(update={"prompt": prompt})}
    )
    monkeypatch.setattr(AdapterRegistry, "find", lambda self, ref: repeating)
    assert translator.prepare_at_once("I see.", "pirate", Options()) is None
    assert translator.prepare_at_once("I", "pirate", Options()) is not None


def test_an_adapter_of_another_base_is_refused_at_once_too(translator: Translator) -> None:
    for _ in range(2):
        with pytest.raises(InvalidError, match="trained on another base"):
            translator.resolve("foreign", None, None, [TEXT])
        with pytest.raises(InvalidError, match="trained on another base"):
            translator.prepare_at_once(TEXT, "foreign", Options())
