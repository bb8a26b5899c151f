"""A file translated line by line into another one; what was done before an interruption is not done again.

Translations are noted in `<output>.partial` as they come, each with its source. The output appears when all lines
are through; where some failed, the notes stay, and the next run tries those again.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dragoman.errors import DragomanError
from dragoman.partial_file import partial_file
from dragoman.translate_many import Line, Numbered
from dragoman.translation import TranslateOptions

OnLine = Callable[[Line], None]


@dataclass
class FileReport:
    """`resumed`: lines that an earlier run had translated. `failed`: lines with no translation, and why."""

    output: Path
    lines: int = 0
    resumed: int = 0
    translated: int = 0
    failed: list[Line] = field(default_factory=list)


class FileTranslation:
    """The bookkeeping of one file. Knows no network: `remaining()` is what to translate, `note()` takes a result.

    Use it as a context manager. Raises DragomanError where `<output>.partial` belongs to other options, or the
    output is the input itself, which a later run could not go on with.
    """

    def __init__(self, source: str | Path, output: str | Path, options: TranslateOptions) -> None:
        self.report = FileReport(Path(output))
        self._source = Path(source)
        self._notes_path = self.report.output.with_name(f"{self.report.output.name}.partial")
        self._header = {"options": dict(sorted(options.items()))}
        self._done: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        self._source.open("rb").close()  # before anything is written
        if self.report.output.exists() and self.report.output.samefile(self._source):
            raise DragomanError(f"{self.report.output} is the input; choose another output")
        whole = self._read_notes()
        self._notes = self._notes_path.open("ab")
        self._notes.truncate(whole)  # half a line, from a run that was killed
        if not whole:
            self._write_note(self._header)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._notes.close()

    def remaining(self) -> Iterator[Numbered]:
        """Lines that have no translation yet, without their ends."""
        for number, text in self._lines():
            done = self._done.get(number)
            if done is not None and done["source"] == text:
                self.report.resumed += 1
            else:
                self._done.pop(number, None)  # the input was changed here
                yield number, text

    def note(self, line: Line) -> None:
        if line.error:
            self.report.failed.append(line)
            return
        self.report.translated += 1
        self._done[line.number] = line.to_dict()
        self._write_note(self._done[line.number])

    def finish(self) -> FileReport:
        """Writes the output: JSON lines if its name says so, else one line of text for each of the input."""
        as_json = is_json_lines(self.report.output)
        failed = {line.number: line for line in self.report.failed}
        with partial_file(self.report.output) as file:
            for number, _ in self._lines():
                self.report.lines += 1
                entry = self._done.get(number) or failed[number].to_dict()
                shown = _dump(entry) if as_json else _one_line(entry.get("translation", ""))
                file.write(f"{shown}\n".encode())
        if not failed:
            self._notes_path.unlink()
        return self.report

    def _lines(self) -> Iterator[Numbered]:
        with self._source.open("rb") as file:
            yield from enumerate(read_lines(file, str(self._source)), 1)

    def _read_notes(self) -> int:
        """Returns how many bytes of the notes are whole lines."""
        if not self._notes_path.exists():
            return 0
        whole = 0
        with self._notes_path.open("rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                try:
                    entry = json.loads(raw)
                    if whole:
                        self._done[entry["line"]] = {"source": entry["source"], **entry}
                    else:
                        self._check_header(entry)
                except (ValueError, KeyError, TypeError) as error:
                    raise self._foreign(
                        "does not hold what a run of this command writes"
                    ) from error
                whole += len(raw)
        return whole

    def _check_header(self, header: Any) -> None:
        if header != self._header:
            raise self._foreign(
                f"is of a run with {_dump(header)}, this one has {_dump(self._header)}"
            )

    def _foreign(self, why: str) -> DragomanError:
        return DragomanError(
            f"{self._notes_path} {why}; remove it to begin anew, or choose another output"
        )

    def _write_note(self, entry: Mapping[str, Any]) -> None:
        self._notes.write(f"{_dump(entry)}\n".encode())
        self._notes.flush()


def is_json_lines(output: Path) -> bool:
    return output.suffix in (".jsonl", ".ndjson")


def read_lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    """Texts without their line ends, which are LF or CRLF alone: a text may hold U+2028.

    Raises DragomanError unless it is UTF-8.
    """
    for number, raw in enumerate(file, 1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DragomanError(
                f"{name} is not UTF-8: line {number}, byte {error.start} is {raw[error.start]:#04x}"
            ) from error
        yield text.removesuffix("\n").removesuffix("\r")


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
