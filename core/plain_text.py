"""Text as JSON and files can hold it: a field's type at every edge."""

from typing import Annotated

from pydantic import AfterValidator


def _well_formed(text: str) -> str:
    if "\0" in text:
        raise ValueError("the text holds a NUL character (U+0000), which no text may")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds half a surrogate pair at character {error.start}; send valid Unicode"
        ) from error
    return text


PlainText = Annotated[str, AfterValidator(_well_formed)]
