"""What LibreTranslate's clients call besides /translate, in its shapes. They send more fields than are used here."""

import asyncio
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any, Self

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.deps import ServicesDep, SettingsDep, TranslatorDep
from app.forms import FORM_TYPES, read_fields, validate
from app.languages import detect, display_name, normalise
from app.schemas import DetectedLanguage, LanguageOut, Text
from app.suggestions import Suggestion, add_suggestion
from app.translator import Translator
from core.errors import InvalidError, TooLargeError
from core.settings import Settings
from core.volume import Volume

router = APIRouter(tags=["libretranslate"])

_MAX_DETECTED = 5
_LEAST_CONFIDENCE = 1.0  # of 100; what is likelier than that is told


class _Call(BaseModel):
    model_config = ConfigDict(extra="ignore")


class DetectRequest(_Call):
    q: Text = Field(min_length=1, examples=["Bonjour tout le monde"])


class SuggestRequest(_Call):
    """A better translation `s` of the text `q`: for an `adapter`, or for that of a language pair."""

    q: Text = Field(min_length=1, examples=["I see you."])
    s: Text = Field(min_length=1, examples=["See you, I do."])
    adapter: Text | None = Field(None, max_length=80, examples=["yoda@2"])
    source: Text | None = Field(None, max_length=35, examples=["en"])
    target: Text | None = Field(None, max_length=35, examples=["en-x-yoda"])

    @model_validator(mode="after")
    def _is_for_somebody(self) -> Self:
        if not self.adapter and None in (self.source, self.target):
            raise ValueError("source and target are needed where no adapter is named")
        return self


class Suggested(BaseModel):
    success: bool = True


class NamedLanguage(BaseModel):
    code: str
    name: str


class DefaultLanguages(BaseModel):
    source: NamedLanguage
    target: NamedLanguage


class FrontendSettings(BaseModel):
    """What LibreTranslate's own web page asks for, and the limits that ours does."""

    charLimit: int  # noqa: N815  LibreTranslate's names
    frontendTimeout: int = 500  # noqa: N815
    apiKeys: bool = False  # noqa: N815
    keyRequired: bool = False  # noqa: N815
    suggestions: bool = True
    filesTranslation: bool = False  # noqa: N815
    supportedFilesFormat: list[str] = []  # noqa: N815
    language: DefaultLanguages
    maxAlternatives: int = Field(  # noqa: N815
        description="the most `alternatives` that POST /translate accepts"
    )
    maxNewTokens: int = Field(  # noqa: N815
        description="the most `max_new_tokens` that it accepts"
    )


def _body(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    content = {kind: {"schema": schema} for kind in ("application/json", *FORM_TYPES)}
    return {"requestBody": {"required": True, "content": content}}


@router.get("/languages")
def list_languages(translator: TranslatorDep) -> list[LanguageOut]:
    """The source languages and, for each, the targets; LibreTranslate's shape."""
    targets: defaultdict[str, set[str]] = defaultdict(set)
    for version in translator.current_versions():
        targets[normalise(version.seal.source)].add(normalise(version.seal.target))
    return [
        LanguageOut(code=code, name=display_name(code), targets=sorted(found))
        for code, found in sorted(targets.items())
    ]


@router.post("/detect", openapi_extra=_body(DetectRequest))
async def detect_language(request: Request, settings: SettingsDep) -> list[DetectedLanguage]:
    """The likeliest languages of a text, best first; LibreTranslate's shape."""
    body = validate(DetectRequest, await read_fields(request))
    _check_length(body.q, settings)
    if not any(c.isalpha() for c in body.q):
        return [DetectedLanguage(confidence=0, language="en")]
    ranked = await asyncio.to_thread(detect, body.q)
    found = [
        DetectedLanguage(confidence=round(100 * probability, 1), language=code)
        for code, probability in ranked[:_MAX_DETECTED]
    ]
    return [f for i, f in enumerate(found) if not i or f.confidence >= _LEAST_CONFIDENCE]


@router.post("/suggest", openapi_extra=_body(SuggestRequest))
async def suggest(
    request: Request, settings: SettingsDep, services: ServicesDep, translator: TranslatorDep
) -> Suggested:
    """Suggest a better translation. It is kept for a later training of the adapter; `GET /suggestions` has them all."""
    body = validate(SuggestRequest, await read_fields(request))
    _check_length(body.q, settings)
    _check_length(body.s, settings)
    await asyncio.to_thread(_keep, body, services.volume, translator)
    return Suggested()


@router.get("/frontend/settings")
def get_frontend_settings(settings: SettingsDep, translator: TranslatorDep) -> FrontendSettings:
    """What LibreTranslate's web page needs to know."""
    versions = translator.current_versions()
    target = normalise(versions[0].seal.target) if versions else "en"
    return FrontendSettings(
        charLimit=settings.max_text_chars,
        language=DefaultLanguages(
            source=NamedLanguage(code="auto", name="Auto Detect"),
            target=NamedLanguage(code=target, name=display_name(target)),
        ),
        maxAlternatives=settings.max_alternatives,
        maxNewTokens=settings.max_new_tokens,
    )


def _keep(body: SuggestRequest, volume: Volume, translator: Translator) -> None:
    version = translator.resolve(body.adapter or None, body.source, body.target, [body.q]).version
    if version is None or version.is_checkpoint:
        raise InvalidError(
            f"{body.adapter!r} learns nothing from suggestions; name an adapter that they are kept for"
        )
    suggestion = Suggestion(
        prompt=body.q,
        completion=body.s,
        source=version.seal.source,
        target=version.seal.target,
        adapter=version.ref,
        created_at=datetime.now(UTC),
    )
    add_suggestion(volume, version.name, suggestion)


def _check_length(text: str, settings: Settings) -> None:
    if len(text) > settings.max_text_chars:
        raise TooLargeError(
            f"a text has {len(text)} characters; at most {settings.max_text_chars} are accepted",
            code="text_too_long",
        )
