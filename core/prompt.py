"""The one place that turns a source text into a prompt, for training and for serving alike."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field, field_validator

from core.errors import InvalidError
from core.plain_text import PlainText

_SENTINEL = "\u4e00a1b2c3"  # a completion that no template contains, to find what follows it
# Llama 3's templates write today's date into the prompt unless told one; a sealed prompt must not change overnight.
_DATE = "26 Jul 2024"


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    chat_template: str | None
    eos_token_id: int | None
    added_tokens_decoder: dict[int, Any]

    def apply_chat_template(self, conversation: list[dict[str, str]], **kwargs: Any) -> Any: ...
    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...


class Prompt(BaseModel):
    """How a source text becomes the user's turn. `template` holds `{text}` once or more."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: PlainText | None = Field(None, max_length=8000)
    template: PlainText = Field("{text}", max_length=8000)

    @field_validator("template")
    @classmethod
    def _has_text(cls, template: str) -> str:
        if "{text}" not in template:
            raise ValueError(f"template {template!r} must contain {{text}}")
        return template

    def messages(self, text: str) -> list[dict[str, str]]:
        turns = [{"role": "system", "content": self.system}] if self.system else []
        # Not str.format: a text or a template may hold braces of its own.
        return [*turns, {"role": "user", "content": self.template.replace("{text}", text)}]


class SealedPrompt(Prompt):
    """A prompt with the chat template it was trained through; kept in an adapter's seal."""

    chat_template: str


class Segment(NamedTuple):
    """A stretch of a rendered conversation: either what the model is given, or what it is to answer."""

    text: str
    ids: list[int]
    is_answer: bool


class PromptRenderer:
    """Renders one sealed prompt with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, prompt: SealedPrompt) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt

    def prompt_text(self, text: str) -> str:
        """Source text -> what the model reads before it answers."""
        return self._render(self._prompt.messages(text), add_generation_prompt=True)

    def prompt_ids(self, text: str) -> list[int]:
        """Source text -> token ids, [prompt_tokens]; the same for training and for serving."""
        return self._tokenizer.encode(self.prompt_text(text), add_special_tokens=False)

    def conversation_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Turns with `role` and `content` -> token ids, [prompt_tokens]; of the sealed prompt only the chat template is used.

        Raises InvalidError `messages_invalid` where the template refuses these turns.
        """
        try:
            text = self._render(list(messages), add_generation_prompt=True)
        except TemplateError as error:
            raise InvalidError(
                f"this model's chat template does not take these messages: {error}",
                code="messages_invalid",
            ) from error
        return self._tokenizer.encode(text, add_special_tokens=False)

    def completion_ids(self, text: str, completion: str) -> list[int]:
        """Target text -> token ids, [completion_tokens], ending in the template's own end of turn."""
        return self.segments([(text, completion)])[1].ids

    def segments(self, exchanges: Sequence[tuple[str, str]]) -> list[Segment]:
        """(source text, target text) pairs of one conversation -> question, answer, question, answer, ...

        Their texts and ids joined are the conversation as it is trained on; an answer ends with its end of turn.
        Ids are taken from the encoding of the whole where that begins with what was encoded before; where a token
        would straddle the border, a segment is encoded apart, since serving generates from exactly the ids before it.
        """
        segments: list[Segment] = []
        seen_ids: list[int] = []
        texts = self._segment_texts(exchanges)
        for i, text in enumerate(texts):
            so_far = "".join(texts[: i + 1])
            whole_ids = self._tokenizer.encode(so_far, add_special_tokens=False)
            if whole_ids[: len(seen_ids)] == seen_ids:
                ids = whole_ids[len(seen_ids) :]
            else:
                ids = self._tokenizer.encode(text, add_special_tokens=False)
            segments.append(Segment(text, ids, is_answer=i % 2 == 1))
            seen_ids = seen_ids + ids
        return segments

    def stop_token_ids(self, eos_token_ids: Sequence[int]) -> list[int]:
        """The model's end tokens and the token with which the template ends an assistant's turn."""
        stops = {*eos_token_ids}
        if self._tokenizer.eos_token_id is not None:
            stops.add(self._tokenizer.eos_token_id)
        ending = self._completion_text("x", _SENTINEL).partition(_SENTINEL)[2]
        for token_id in self._tokenizer.encode(ending, add_special_tokens=False)[:1]:
            # Not `all_special_ids`, which lists only the tokens that have a role, such as eos. And not a newline's
            # byte token: a translation may have several lines.
            token = self._tokenizer.added_tokens_decoder.get(token_id)
            if token is not None and token.special and ending.startswith(str(token)):
                stops.add(token_id)
        return sorted(stops)

    def _completion_text(self, text: str, completion: str) -> str:
        return self._segment_texts([(text, completion)])[1]

    def _segment_texts(self, exchanges: Sequence[tuple[str, str]]) -> list[str]:
        turns: list[dict[str, str]] = []
        texts: list[str] = []
        rendered = ""  # what `texts` come to, joined
        answered = ""  # all turns so far, as they look where the conversation ends
        for text, completion in exchanges:
            # The system turn belongs to the first question alone.
            turns += self._prompt.messages(text) if not turns else self._prompt.messages(text)[-1:]
            asked = self._render(turns, add_generation_prompt=True)
            if answered:
                # Before another question an answer may end otherwise: some templates close a conversation with eos.
                end = self._common_length(answered, asked)
                texts[-1] = asked[len(rendered) : end]
                rendered = asked[:end]
            turns.append({"role": "assistant", "content": completion})
            answered = self._render(turns)
            if not asked.startswith(rendered) or not answered.startswith(asked):
                raise InvalidError(
                    "this model's chat template renders a conversation differently once it is "
                    "answered; its prompt cannot be the same in training and in serving",
                    code="chat_template_unusable",
                )
            texts += [asked[len(rendered) :], answered[len(asked) :]]
            rendered = asked
        return texts

    def _common_length(self, left: str, right: str) -> int:
        """Of the longest beginning that both have, special tokens uncut."""
        pairs = enumerate(zip(left, right, strict=False))
        length = next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
        for token in map(str, self._tokenizer.added_tokens_decoder.values()):
            for start in range(max(0, length - len(token) + 1), length):
                if left.startswith(token, start) or right.startswith(token, start):
                    length = start
                    break
        return length

    def _render(self, turns: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        rendered = self._tokenizer.apply_chat_template(
            turns,
            chat_template=self._prompt.chat_template,
            tokenize=False,
            date_string=_DATE,
            add_generation_prompt=add_generation_prompt,
        )
        return str(rendered)


# For a model that has no chat template of its own.
PLAIN_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% else %}{{ eos_token }}{% endif %}"
)


def seal_prompt(prompt: Prompt, tokenizer: Tokenizer) -> SealedPrompt:
    """Fixes the chat template that `prompt` is rendered through from now on."""
    return SealedPrompt(
        system=prompt.system,
        template=prompt.template,
        chat_template=tokenizer.chat_template or PLAIN_CHAT_TEMPLATE,
    )
