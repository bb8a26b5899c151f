"""What serving and evaluation must agree on when they answer a text: whether the model is asked, and how long it may go on."""

# Room for a translation where nobody names one: texts seldom grow more than fourfold in tokens.
_GROWTH = 4
_LEAST_NEW_TOKENS = 64


def has_words(text: str) -> bool:
    """Whether there is anything to translate; what has none is returned as it is."""
    return any(c.isalnum() for c in text)


def default_max_new_tokens(num_prompt_tokens: int) -> int:
    """How many tokens an answer may have where a request names no limit; a server's own limits still apply."""
    return max(_LEAST_NEW_TOKENS, _GROWTH * num_prompt_tokens)
