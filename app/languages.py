"""Language codes: the aliases that LibreTranslate's clients send, names, and detection."""

from functools import cache
from typing import Any

from langcodes import Language, tag_is_valid
from py3langid.langid import MODEL_FILE, LanguageIdentifier

# LibreTranslate's own codes, accepted in any case. A script that is a language's usual one is dropped after.
_ALIASES = {"pb": "pt-BR", "zt": "zh-Hant", "zh-hans": "zh"}
# Written alike, told apart by no detector: a text detected as one may be meant as the other.
_DETECTED_AS = {"lzh": "zh", "yue": "zh", "wuu": "zh"}


def normalise(code: str) -> str:
    """The one spelling under which a language is looked up; an unknown code stays as it is."""
    code = _ALIASES.get(code.lower(), code)
    return Language.get(code).simplify_script().to_tag() if tag_is_valid(code) else code


def display_name(code: str) -> str:
    """The language's name in English; private subtags are shown as they are written."""
    public, _, private = code.partition("-x-")
    name = Language.get(public).display_name() if tag_is_valid(public) else public
    return f"{name} ({private})" if private else str(name)


@cache
def _identifier() -> Any:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def detect(text: str) -> list[tuple[str, float]]:
    """Languages by likelihood, best first, with the probability 0..1 of each."""
    ranked: dict[str, float] = {}
    for code, probability in _identifier().rank(text):
        code = detected_as(code)
        ranked[code] = ranked.get(code, 0.0) + float(probability)
    return sorted(ranked.items(), key=lambda item: -item[1])


def detected_as(code: str) -> str:
    """The code under which the detector knows a language."""
    return _DETECTED_AS.get(code) or Language.get(code).prefer_macrolanguage().language or code
