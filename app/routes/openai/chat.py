"""Chat completions: a translation, or the bare base model's next turn."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request

from app.deps import ServicesDep
from app.disconnection import unless_disconnected
from app.event_stream import EventStream
from app.forms import read_json, validate
from app.problems import OpenAIError
from app.routes.openai.models import find_route
from app.routes.openai.shapes import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    ChatRequest,
    ChatUsage,
    Choice,
    ChunkChoice,
    Delta,
)
from app.translator import Asked, Options, Route, TextPart, Translation, Translator
from core.errors import InvalidError, ServiceError, TooLargeError
from core.settings import Settings

router = APIRouter(prefix="/v1")

_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
}
_LEAST_TOP_P = 1e-6  # 0 means the likeliest token alone to OpenAI's clients


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {}}}},
    openapi_extra={"requestBody": _BODY},
)
async def create_chat_completion(request: Request, services: ServicesDep) -> Any:
    """Translate the last user message with the adapter `model`, or let `base` go on with the conversation.

    With `stream`, answers `text/event-stream` with `chat.completion.chunk` objects, then `[DONE]`.
    """
    translator, settings = services.require_serving().translator, services.settings
    body = validate(ChatRequest, await read_json(request))
    num_choices = body.n or 1
    _check_limits(body, num_choices, settings)
    asked = await asyncio.to_thread(_prepare, body, num_choices, settings, translator)
    head = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": asked.route.ref,
        "system_fingerprint": translator.base_fingerprint,
    }
    if body.stream:
        parts = translator.stream(asked)
        await anext(parts)  # queued, or refused while there is still a status line to say so
        return EventStream(_stream(parts, head, body, num_choices))
    translations = await unless_disconnected(request, translator.translate(asked))
    choices = [
        Choice(index=i, message=ChatMessage(content=t.text), finish_reason=t.finish_reason)
        for i, t in enumerate(translations)
    ]
    return ChatCompletion(choices=choices, usage=_usage(translations), **head)


def _check_limits(body: ChatRequest, num_choices: int, settings: Settings) -> None:
    longest = 1 + settings.max_alternatives
    if num_choices > longest:
        raise InvalidError(f"n is {num_choices}; 1 to {longest} are accepted", code="n_too_large")
    num_chars = sum(len(message.text) for message in body.messages)
    if num_chars > settings.max_text_chars:
        raise TooLargeError(
            f"the messages have {num_chars} characters; at most {settings.max_text_chars} are accepted",
            code="text_too_long",
        )


def _prepare(
    body: ChatRequest, num_choices: int, settings: Settings, translator: Translator
) -> Asked:
    """All that reads the volume or takes long, for one hop to a thread."""
    route, text = _route(body, translator)
    return translator.prepare([text] * num_choices, route, _options(body, route, settings))


def _route(body: ChatRequest, translator: Translator) -> tuple[Route, str]:
    """What answers, and the text that it is given."""
    route = find_route(translator, body.model)
    asked = [i for i, message in enumerate(body.messages) if message.role == "user"]
    if not asked:
        raise InvalidError(
            "messages hold no user message; the last one is what is answered",
            code="messages_invalid",
        )
    last = body.messages[asked[-1]]
    if route.version is not None:
        return route, last.text
    if body.messages[-1] is not last:
        raise InvalidError(
            f"the last message is the {body.messages[-1].role}'s; it must be the user's",
            code="messages_invalid",
        )
    turns = tuple(
        {"role": "system" if m.role == "developer" else m.role, "content": m.text}
        for m in body.messages[:-1]
    )
    return replace(route, turns=turns), last.text


def _options(body: ChatRequest, route: Route, settings: Settings) -> Options:
    max_new_tokens = body.max_completion_tokens or body.max_tokens
    if max_new_tokens is None and route.version is None:
        # An answer has no reason to be about as long as its question, as a translation has.
        max_new_tokens = settings.max_new_tokens
    return Options(
        max_new_tokens=max_new_tokens,
        is_ceiling=True,
        temperature=body.temperature,
        top_p=1.0 if body.top_p is None else max(body.top_p, _LEAST_TOP_P),
        seed=None if body.seed is None else body.seed % 2**62,
        seeds_differ=True,
        stop=body.stop_strings,
    )


async def _stream(
    parts: AsyncGenerator[TextPart | list[Translation] | None],
    head: dict[str, Any],
    body: ChatRequest,
    num_choices: int,
) -> AsyncIterator[bytes]:
    def chunk(index: int, delta: Delta, finish_reason: str | None = None) -> bytes:
        choice = ChunkChoice(index=index, delta=delta, finish_reason=finish_reason)
        return _event(ChatCompletionChunk(choices=[choice], **head).model_dump(exclude={"usage"}))

    for index in range(num_choices):
        yield chunk(index, Delta(role="assistant", content=""))
    try:
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, TextPart):
                    yield chunk(part.index, Delta(content=part.text))
                elif part is not None:
                    for index, translation in enumerate(part):
                        yield chunk(index, Delta(), translation.finish_reason)
                    if body.stream_options and body.stream_options.include_usage:
                        usage = ChatCompletionChunk(choices=[], usage=_usage(part), **head)
                        yield _event(usage.model_dump())
    except ServiceError as error:  # the status line is gone; say it in the stream
        yield _event({"error": OpenAIError.of(error).model_dump()})
        return
    yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _usage(translations: list[Translation]) -> ChatUsage:
    """The prompt is counted once, however many answers there are."""
    num_prompt = translations[0].num_prompt_tokens
    num_completion = sum(t.num_completion_tokens for t in translations)
    return ChatUsage(
        prompt_tokens=num_prompt,
        completion_tokens=num_completion,
        total_tokens=num_prompt + num_completion,
    )
