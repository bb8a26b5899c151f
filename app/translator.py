"""Text -> adapter -> prompt -> token ids -> engine -> text. The product's rule; knows no HTTP."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from app.checkpoints import CheckpointFinder
from app.engine.engine import Engine
from app.engine.sequence import FinishReason, SamplingParams
from app.generation import Generation, Generations, Plan
from app.languages import detect, detected_as, normalise
from core.adapter_version import JOB_PREFIX, AdapterVersion, Seal
from core.adapters import BASE, AdapterRegistry
from core.decoding import default_max_new_tokens, has_words
from core.errors import InvalidError, NotFoundError, ServiceError
from core.prompt import Prompt, PromptRenderer, SealedPrompt, seal_prompt

_ALTERNATIVES_TEMPERATURE = 0.8
_MAX_CHARS_AT_ONCE = 2000  # of a prompt; a millisecond's work


@dataclass(frozen=True, slots=True)
class Options:
    """How a request wants its texts decoded; None: the adapter's own default.

    `is_ceiling`: fewer tokens than `max_new_tokens` will do where there is no room for as many. `seeds_differ`: text
    number i is drawn with `seed` + i, for several answers to one text.
    """

    max_new_tokens: int | None = None
    is_ceiling: bool = False
    seeds_differ: bool = False
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    num_alternatives: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a request: one adapter version, or the untouched base model.

    `turns`, with `role` and `content`, are what was said before the text: it is then no text to translate, but the
    next turn of a conversation with the base model.
    """

    version: AdapterVersion | None
    prompt: SealedPrompt
    stop_token_ids: frozenset[int]
    temperature: float
    detected: tuple[str, float] | None = None  # language and probability 0..1, where it was asked
    turns: tuple[dict[str, str], ...] | None = None

    def asks(self, text: str) -> bool:
        """Whether the model is asked at all: what has nothing to translate is returned as it is."""
        return self.turns is not None or has_words(text)

    @property
    def ref(self) -> str:
        return self.version.ref if self.version else BASE


@dataclass(slots=True)
class Translation:
    """One text's translation. Token counts include alternatives."""

    text: str
    finish_reason: str = FinishReason.STOP
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    alternatives: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Asked:
    """Texts in the tokens that the engine is given. `plans`: of each text that it is asked, and of its alternatives."""

    texts: list[str]
    route: Route
    options: Options
    plans: list[Plan]


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of translation number `index`, as it comes."""

    index: int
    text: str


class Translator:
    """Translates texts through one engine and the adapters of one registry."""

    def __init__(
        self,
        engine: Engine,
        registry: AdapterRegistry,
        tokenizer: Any,
        checkpoints: CheckpointFinder,
        *,
        base_fingerprint: str,
        eos_token_ids: list[int],
        max_new_tokens: int,
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._tokenizer = tokenizer
        self._checkpoints = checkpoints
        self.base_fingerprint = base_fingerprint
        self._max_new_tokens = max_new_tokens
        base_prompt = seal_prompt(Prompt(system=None, template="{text}"), tokenizer)
        stops = PromptRenderer(tokenizer, base_prompt).stop_token_ids(eos_token_ids)
        self._base = Route(None, base_prompt, frozenset(stops), 0.0)

    # Which adapter answers

    def resolve(
        self, adapter: str | None, source: str | None, target: str | None, texts: list[str]
    ) -> Route:
        """The route for an adapter's name or version, for a job's checkpoint or, without one, for a language pair.

        Raises NotFoundError `adapter_not_found` or `language_pair_not_found`, both with what exists, or
        InvalidError `adapter_missing` or `adapter_for_other_base`; for a checkpoint, what CheckpointFinder.find and
        Engine.read_adapter raise.
        """
        detected = (
            detect("\n".join(texts)) if source is not None and source.lower() == "auto" else []
        )
        if adapter is None:
            version = self._choose(source, target, [code for code, _ in detected])
        elif adapter == BASE:
            version = None
        elif adapter.startswith(JOB_PREFIX):
            version = self._read_checkpoint(adapter)
        else:
            version = self._registry.resolve(adapter)
        return self._route(version, detected[0] if detected else None)

    def _route(
        self, version: AdapterVersion | None, detected: tuple[str, float] | None = None
    ) -> Route:
        if version is None:
            return replace(self._base, detected=detected)
        seal = version.seal
        self.check_base(seal, f"adapter {version.ref}")
        stops = frozenset(seal.stop_token_ids) or self._base.stop_token_ids
        return Route(version, seal.prompt, stops, seal.decoding.temperature, detected)

    def check_base(self, seal: Seal, name: str) -> None:
        """Raises InvalidError `adapter_for_other_base` unless what is called `name` fits this base model."""
        if seal.base_fingerprint != self.base_fingerprint:
            raise InvalidError(
                f"{name} was trained on another base model "
                f"({seal.base_model[:200]}, fingerprint {seal.base_fingerprint[:64]}); "
                f"this server holds {self.base_fingerprint}",
                code="adapter_for_other_base",
            )

    def _read_checkpoint(self, ref: str) -> AdapterVersion:
        """Found and read: the job that it is of may remove it before its turn comes."""
        checkpoint = self._checkpoints.find(ref)
        while True:
            self.check_base(checkpoint.seal, f"checkpoint {checkpoint.ref}")
            try:
                self._engine.read_adapter(checkpoint)
                return checkpoint
            except ServiceError:
                left = self._checkpoints.find(ref)  # raises if nothing is left
                if left == checkpoint:
                    raise
                checkpoint = left

    def current_versions(self) -> list[AdapterVersion]:
        """The current version of each adapter that has one, is whole and was trained on this base."""
        adapters = self._registry.all()
        return self._servable((a.name, a.current) for a in adapters if a.current is not None)

    def servable_versions(self) -> list[AdapterVersion]:
        """All versions that are whole and were trained on this base."""
        return self._servable((a.name, n) for a in self._registry.all() for n in a.versions)

    def _servable(self, numbered: Iterable[tuple[str, int]]) -> list[AdapterVersion]:
        versions = []
        for name, number in numbered:
            with suppress(ServiceError):  # broken, or deleted meanwhile: the others still serve
                versions.append(self._registry.version(name, number))
        return [v for v in versions if v.seal.base_fingerprint == self.base_fingerprint]

    def _choose(
        self, source: str | None, target: str | None, detected: list[str]
    ) -> AdapterVersion:
        if target is None:
            missing = "adapter, source and target are all" if source is None else "target is"
            raise InvalidError(
                "name an adapter, or a target language (and a source, or 'auto'): "
                f"{missing} missing; {self._what_exists()}",
                code="adapter_missing",
            )
        fitting = [
            v for v in self.current_versions() if normalise(v.seal.target) == normalise(target)
        ]
        if source is not None and not detected:
            fitting = [v for v in fitting if normalise(v.seal.source) == normalise(source)]
        elif detected:
            order = {code: place for place, code in reversed(list(enumerate(detected)))}
            fitting.sort(key=lambda v: order.get(detected_as(v.seal.source), len(order)))
        if not fitting:
            raise NotFoundError(
                f"no adapter translates from {source or 'auto'!r} to {target!r}; {self._what_exists()}",
                code="language_pair_not_found",
                adapters=[a.name for a in self._registry.all()],
            )
        return self._registry.resolve(fitting[0].name)  # a canary may answer in its place

    def _what_exists(self) -> str:
        pairs = [f"{v.name} ({v.seal.source} to {v.seal.target})" for v in self.current_versions()]
        return f"there are: {', '.join([*pairs, BASE])}"

    # Translating

    def prepare(self, texts: list[str], route: Route, options: Options) -> Asked:
        """Tokenises; megabytes of text take seconds, so not on the event loop. Raises what the prompt's template raises."""
        return Asked(texts, route, options, list(self._plans(texts, route, options)))

    def prepare_at_once(self, text: str, adapter: str | None, options: Options) -> Asked | None:
        """`resolve` and `prepare` in a millisecond at most, so even on the event loop.

        None where that cannot be: for a long text, a version whose seal was not read before, while a canary runs, and
        where no adapter is named. Raises InvalidError `adapter_for_other_base`.
        """
        if adapter is None or len(text) > _MAX_CHARS_AT_ONCE:
            return None
        version = None if adapter == BASE else self._registry.find(adapter)
        if version is None and adapter != BASE:
            return None
        route = self._route(version)
        # A template may hold the text many times.
        turns = route.prompt.messages(text)
        if sum(len(turn["content"]) for turn in turns) > _MAX_CHARS_AT_ONCE:
            return None
        return self.prepare([text], route, options)

    async def translate(self, asked: Asked) -> list[Translation]:
        """All texts at once, in order. Cancelling the coroutine frees their places within a step.

        Raises what Engine.submit raises, and the first error that a text's generation met.
        """
        async with Generations(self._engine, self._tokenizer, asked.options.stop) as generations:
            results = iter([generations.add(plan) for plan in asked.plans])
            generations.submit()
            await generations.finish()
            per_text = 1 + asked.options.num_alternatives
            return [
                _merge([next(results) for _ in range(per_text)])
                if asked.route.asks(text)
                else Translation(text)
                for text in asked.texts
            ]

    async def stream(self, asked: Asked) -> AsyncGenerator[TextPart | list[Translation] | None]:
        """Yields None once all texts are queued, each text's parts as they come and, last, the translations.

        Raises what Engine.submit raises before it yields anything. Alternatives come with the translations only.
        """
        texts = asked.texts
        async with Generations(
            self._engine, self._tokenizer, asked.options.stop, streaming=True
        ) as generations:
            with_words = [i for i, text in enumerate(texts) if asked.route.asks(text)]
            added = [generations.add(plan) for plan in asked.plans]
            per_text = 1 + asked.options.num_alternatives
            groups = {i: added[n * per_text :][:per_text] for n, i in enumerate(with_words)}
            generations.submit()
            yield None
            for index, text in enumerate(texts):
                if index not in groups:
                    yield TextPart(index, text)
            indices = {id(group[0]): index for index, group in groups.items()}
            async for generation, text in generations.parts():
                if id(generation) in indices:
                    yield TextPart(indices[id(generation)], text)
            yield [
                _merge(groups[i]) if i in groups else Translation(text)
                for i, text in enumerate(texts)
            ]

    def _plans(self, texts: list[str], route: Route, options: Options) -> Iterable[Plan]:
        render = _renderer(self._tokenizer, route.prompt)
        temperature = route.temperature if options.temperature is None else options.temperature
        for index, text in enumerate(filter(route.asks, texts)):
            if route.turns is None:
                prompt_ids = render.prompt_ids(text)
            else:
                said = {"role": "user", "content": text}
                prompt_ids = render.conversation_ids([*route.turns, said])
            for number in range(1 + options.num_alternatives):
                sampled = max(temperature, _ALTERNATIVES_TEMPERATURE) if number else temperature
                seed = options.seed
                if seed is not None:
                    seed += number + (index if options.seeds_differ else 0)
                params = SamplingParams(
                    max_new_tokens=self._room(prompt_ids, options),
                    stop_token_ids=route.stop_token_ids,
                    temperature=sampled,
                    top_p=options.top_p,
                    top_k=options.top_k,
                    seed=seed,
                )
                yield prompt_ids, params, route.version

    def _room(self, prompt_ids: list[int], options: Options) -> int:
        if options.max_new_tokens is not None and not options.is_ceiling:
            return options.max_new_tokens
        wanted = options.max_new_tokens or default_max_new_tokens(len(prompt_ids))
        left = self._engine.max_tokens - len(prompt_ids)
        return max(1, min(wanted, self._max_new_tokens, left))


def _merge(generations: list[Generation]) -> Translation:
    """The first is the translation, the others its alternatives: those that differ."""
    first = generations[0]
    texts = list(dict.fromkeys(g.stream.text for g in generations))
    return Translation(
        text=texts[0],
        finish_reason=str(first.finish_reason),
        num_prompt_tokens=len(first.sequence.prompt_ids),
        num_completion_tokens=sum(g.stream.num_tokens for g in generations),
        alternatives=texts[1:],
    )


@lru_cache(maxsize=256)
def _renderer(tokenizer: Any, prompt: SealedPrompt) -> PromptRenderer:
    return PromptRenderer(tokenizer, prompt)
