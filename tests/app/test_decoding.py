"""Streaming text: never half a character, never half a stop string, and the same text as decoding it whole."""

import pytest
from transformers import AutoTokenizer

from app.decoding import TextStream, decode
from core.base_model import EMBEDDED


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return AutoTokenizer.from_pretrained(EMBEDDED)


@pytest.mark.parametrize(
    "text",
    [
        "The soup is cold.",
        "乃止不拜啬夫。于是，取消原来的打算",
        "emoji 👩‍👩‍👧 and ‏עברית‎ and a\ttab\n\nand  spaces",
        " leading and trailing ",
        "𝔘𝔫𝔲𝔰𝔲𝔞𝔩 ☃",
    ],
)
def test_parts_make_the_whole(tokenizer: object, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)  # type: ignore[attr-defined]
    stream = TextStream(tokenizer, [])  # type: ignore[arg-type]
    parts = [stream.push([i]) for i in ids]
    parts.append(stream.finish())
    # A sentencepiece tokenizer cannot tell a leading space from the one that it adds.
    assert "".join(parts) == decode(tokenizer, ids) == stream.text == text.removeprefix(" ")  # type: ignore[arg-type]
    assert not any("\ufffd" in p for p in parts)
    assert sum(map(bool, parts)) > 1, "nothing was streamed"


def test_a_broken_character_at_the_end_is_shown_as_it_decodes(tokenizer: object) -> None:
    ids = tokenizer.encode("☃", add_special_tokens=False)  # type: ignore[attr-defined]
    assert len(ids) > 1
    stream = TextStream(tokenizer, [])  # type: ignore[arg-type]
    assert stream.push(ids[:2]) == ""
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("stop", "expected", "stopped"),
    [
        (["river"], "The old ", True),
        (["xyz"], "The old river keeps its bed.", False),
        (["bed.", "keeps its"], "The old river ", True),
        (["T"], "", True),
        (["bed.!"], "The old river keeps its bed.", False),
    ],
)
def test_stop_strings_cut_however_the_tokens_come(
    tokenizer: object, chunk: int, stop: list[str], expected: str, stopped: bool
) -> None:
    ids = tokenizer.encode("The old river keeps its bed.", add_special_tokens=False)  # type: ignore[attr-defined]
    stream = TextStream(tokenizer, stop)  # type: ignore[arg-type]
    shown = ""
    for start in range(0, len(ids), chunk):
        shown += stream.push(ids[start : start + chunk])
        if stream.stopped:
            break
    shown += stream.finish()
    assert shown == stream.text == expected
    assert stream.stopped is stopped
