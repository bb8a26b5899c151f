"""POST /translate: LibreTranslate's call, with adapters, decoding options and streaming."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.sse import format_sse_event

from app.deps import ServicesDep
from app.disconnection import unless_disconnected
from app.event_stream import EventStream
from app.forms import FORM_TYPES, read_fields, validate
from app.markup import HtmlDocument
from app.schemas import (
    DetectedLanguage,
    TranslateRequest,
    TranslateResponse,
    Usage,
)
from app.translator import Asked, Options, Route, TextPart, Translation, Translator
from core.errors import InvalidError, ServiceError, TooLargeError
from core.settings import Settings

router = APIRouter(tags=["translate"])

_Prepared = tuple[Asked, list[HtmlDocument] | None]

_BODY = {
    "required": True,
    "content": {
        kind: {
            "schema": TranslateRequest.model_json_schema(
                ref_template="#/components/schemas/{model}"
            )
        }
        for kind in ("application/json", *FORM_TYPES)
    },
}


@router.post(
    "/translate",
    response_model=TranslateResponse,
    response_model_exclude_none=True,
    responses={200: {"content": {"text/event-stream": {}}}},
    openapi_extra={"requestBody": _BODY},
)
async def translate(request: Request, services: ServicesDep) -> Any:
    """Translate a text or a list of texts.

    With `stream`, answers `text/event-stream`: `token` events `{"index","text"}`, then `done` with the usual body,
    or `error` with a problem.
    """
    translator, settings = services.require_serving().translator, services.settings
    body = validate(TranslateRequest, await read_fields(request))
    _check_limits(body, settings)
    prepared = _prepare_at_once(body, translator)
    if prepared is None:
        prepared = await asyncio.to_thread(_prepare, body, settings, translator)
    asked, documents = prepared
    if body.stream:
        parts = translator.stream(asked)
        await anext(parts)  # queued, or refused while there is still a status line to say so
        return EventStream(_stream(parts, asked.route, body, documents))
    translations = await unless_disconnected(request, translator.translate(asked))
    return _answer(body, asked.route, translations, documents)


def _check_limits(body: TranslateRequest, settings: Settings) -> None:
    texts = body.texts
    if not texts or not all(texts):
        raise InvalidError(
            "q is empty; send a text, or a list of texts that are not empty", code="q_missing"
        )
    if len(texts) > settings.max_batch:
        raise InvalidError(
            f"q holds {len(texts)} texts; at most {settings.max_batch} are accepted in one request",
            code="batch_too_large",
        )
    longest = max(map(len, texts))
    if longest > settings.max_text_chars:
        raise TooLargeError(
            f"a text has {longest} characters; at most {settings.max_text_chars} are accepted",
            code="text_too_long",
        )
    if body.alternatives > settings.max_alternatives:
        raise InvalidError(
            f"alternatives is {body.alternatives}; at most {settings.max_alternatives} are accepted",
            code="too_many_alternatives",
        )
    if len(texts) * (1 + body.alternatives) > settings.max_waiting:
        raise InvalidError(
            f"{len(texts)} texts with {body.alternatives} alternatives each are over the "
            f"{settings.max_waiting} translations that may wait; send fewer at a time",
            code="batch_too_large",
        )
    if (body.max_new_tokens or 0) > settings.max_new_tokens:
        raise InvalidError(
            f"max_new_tokens is {body.max_new_tokens}; 1 to {settings.max_new_tokens} are accepted",
            code="max_new_tokens_too_large",
        )


def _prepare_at_once(body: TranslateRequest, translator: Translator) -> _Prepared | None:
    """Without the hop to a thread, which takes longer than the work of most requests. None: it needs the hop."""
    is_auto = body.source is not None and body.source.lower() == "auto"  # detecting it takes long
    if not isinstance(body.q, str) or body.format == "html" or is_auto:
        return None
    asked = translator.prepare_at_once(body.q, body.adapter, _options(body))
    return None if asked is None else (asked, None)


def _prepare(body: TranslateRequest, settings: Settings, translator: Translator) -> _Prepared:
    """All that reads the volume or takes long, for one hop to a thread: markup made to be slow to parse stalls nobody else."""
    documents = _parse(body, settings) if body.format == "html" else None
    texts = [t for d in documents for t in d.texts] if documents else body.texts
    route = translator.resolve(body.adapter, body.source, body.target, texts)
    return translator.prepare(texts, route, _options(body, documents)), documents


def _options(body: TranslateRequest, documents: list[HtmlDocument] | None = None) -> Options:
    return Options(
        max_new_tokens=body.max_new_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        stop=body.stop_strings,
        num_alternatives=0 if documents else body.alternatives,
    )


def _parse(body: TranslateRequest, settings: Settings) -> list[HtmlDocument]:
    documents = [HtmlDocument(text) for text in body.texts]
    num_texts = sum(len(d.texts) for d in documents)
    if num_texts > settings.max_waiting:
        raise InvalidError(
            f"the HTML holds {num_texts} pieces of text; at most {settings.max_waiting} are "
            "accepted in one request",
            code="batch_too_large",
        )
    return documents


async def _stream(
    parts: AsyncGenerator[TextPart | list[Translation] | None],
    route: Route,
    body: TranslateRequest,
    documents: list[HtmlDocument] | None,
) -> AsyncIterator[bytes]:
    try:
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, TextPart):
                    yield _event("token", asdict(part))
                elif part is not None:
                    answer = _answer(body, route, part, documents)
                    yield _event("done", answer.model_dump(exclude_none=True))
    except ServiceError as error:  # the status line is gone; say it in the stream
        yield _event(
            "error",
            {
                "status": error.status_code,
                "code": error.code,
                "detail": error.message,
                **error.extra,
            },
        )


def _event(kind: str, data: Any) -> bytes:
    return format_sse_event(data_str=json.dumps(data, ensure_ascii=False), event=kind)


def _answer(
    body: TranslateRequest,
    route: Route,
    translations: list[Translation],
    documents: list[HtmlDocument] | None,
) -> TranslateResponse:
    usage = Usage(
        prompt_tokens=sum(t.num_prompt_tokens for t in translations),
        completion_tokens=sum(t.num_completion_tokens for t in translations),
    )
    if documents is not None:
        translations = _reassemble(documents, translations)
    detected = None
    if route.detected:
        language, probability = route.detected
        detected = DetectedLanguage(confidence=round(100 * probability, 1), language=language)
    single = isinstance(body.q, str)

    def shape(values: list[Any]) -> Any:
        return values[0] if single else values

    return TranslateResponse(
        translatedText=shape([t.text for t in translations]),
        adapter=route.ref,
        usage=usage,
        finish_reason=shape([t.finish_reason for t in translations]),
        alternatives=shape([t.alternatives for t in translations]) if body.alternatives else None,
        detectedLanguage=shape([detected] * len(translations)) if detected else None,
    )


def _reassemble(
    documents: list[HtmlDocument], translations: list[Translation]
) -> list[Translation]:
    """Each document's nodes back in their places; one that was cut short shows in the finish reason."""
    rest = iter(translations)
    whole = []
    for document in documents:
        nodes = [next(rest) for _ in document.texts]
        cut = any(n.finish_reason == "length" for n in nodes)
        whole.append(
            Translation(document.replaced([n.text for n in nodes]), "length" if cut else "stop")
        )
    return whole
