"""Files that appear whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def partial_file(target: Path) -> Iterator[BinaryIO]:
    """Writes beside `target` and renames at the end; a failure leaves nothing new. Raises OSError of `target`."""
    partial = target.with_name(f".{target.name}.part")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(target)
    except OSError as error:
        if error.filename == str(partial):  # which nobody has heard of
            error.filename = str(target)
        raise
    finally:
        partial.unlink(missing_ok=True)
