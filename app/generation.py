"""The sequences of one request on an event loop: engine updates -> text, and their end when the request ends."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from app.decoding import TextStream
from app.engine.engine import Engine
from app.engine.sequence import FinishReason, SamplingParams, Sequence, Update
from core.adapter_version import AdapterVersion

# Prompt, parameters, and whose answer it is; None: the base model's.
Plan = tuple[list[int], SamplingParams, AdapterVersion | None]


class Generation:
    """One sequence, and the text that has come of it."""

    def __init__(self, sequence: Sequence, stream: TextStream) -> None:
        self.sequence = sequence
        self.stream = stream
        self.finish_reason: FinishReason | None = None

    def take(self, update: Update) -> str:
        """Takes an update of the engine; returns the text that may be shown now. Raises the update's error."""
        if update.error is not None:
            raise update.error
        if update.finish_reason is None:
            return self.stream.push(update.token_ids)
        self.finish_reason = update.finish_reason
        text = self.stream.push(update.token_ids[self.stream.num_tokens :])
        return text + self.stream.finish()


class Generations:
    """The sequences of one request; leaving the context cancels those that have not finished."""

    def __init__(
        self, engine: Engine, tokenizer: Any, stop: tuple[str, ...], *, streaming: bool = False
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._stop = stop
        self._streaming = streaming or bool(stop)
        self._loop = asyncio.get_running_loop()
        self._updates: asyncio.Queue[tuple[Generation, Update]] = asyncio.Queue()
        self._all: list[Generation] = []

    async def __aenter__(self) -> "Generations":
        return self

    async def __aexit__(self, *_: object) -> None:
        left = [g.sequence for g in self._all if g.finish_reason is None]
        if left:
            self._engine.cancel(*left)

    def add(self, plan: Plan) -> Generation:
        prompt_ids, params, adapter = plan
        generation: Generation

        def sink(update: Update) -> None:
            self._loop.call_soon_threadsafe(self._updates.put_nowait, (generation, update))

        sequence = Sequence(prompt_ids, params, adapter, sink, self._streaming)
        generation = Generation(sequence, TextStream(self._tokenizer, self._stop))
        self._all.append(generation)
        return generation

    def submit(self) -> None:
        if self._all:
            self._engine.submit(*(g.sequence for g in self._all))

    async def finish(self) -> None:
        async for _ in self.parts():
            pass

    async def parts(self) -> AsyncGenerator[tuple[Generation, str]]:
        """Text as it comes, until all have finished."""
        num_left = len(self._all)
        while num_left:
            generation, update = await self._updates.get()
            if generation.finish_reason is not None:
                continue  # a token that was under way when a stop string was found
            text = generation.take(update)
            if generation.stream.stopped:
                self._engine.cancel(generation.sequence)
                generation.finish_reason = FinishReason.STOP
            if text:
                yield generation, text
            num_left -= generation.finish_reason is not None
