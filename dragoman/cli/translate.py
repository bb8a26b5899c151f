"""`dragoman translate`: a text, lines from a pipe, or a file."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dragoman.cli.exit_codes import ExitCode, WrongUsageError
from dragoman.cli.session import Session, command
from dragoman.models import Translation
from dragoman.translate_file import OnLine, is_json_lines, read_lines
from dragoman.translate_many import Line
from dragoman.translation import TranslateOptions


class _Format(StrEnum):
    TEXT = "text"
    HTML = "html"


def register(app: typer.Typer) -> None:
    command(app, "translate")(translate)


def translate(
    session: Session,
    text: Annotated[
        str | None, typer.Argument(help="one text; without it, the lines of --input or stdin")
    ] = None,
    *,
    adapter: Annotated[
        str | None, typer.Option("--adapter", "-a", help="yoda, yoda@2, or base for the bare model")
    ] = None,
    source: Annotated[str | None, typer.Option("--source", "-s", help="language, or auto")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="language")] = None,
    input_path: Annotated[
        Path | None,
        typer.Option(
            "--input", "-i", exists=True, dir_okay=False, help="a UTF-8 file, line by line"
        ),
    ] = None,
    output_path: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="a file for the result; .jsonl: with both sides. Can be resumed"
        ),
    ] = None,
    stream: Annotated[bool, typer.Option(help="print tokens as they come")] = False,
    alternatives: Annotated[int, typer.Option(min=0, help="further translations to offer")] = 0,
    format: Annotated[_Format, typer.Option(help="html: one document, its text is translated")] = (  # noqa: A002
        _Format.TEXT
    ),
    temperature: Annotated[float | None, typer.Option(help="0: greedy")] = None,
    top_p: Annotated[float | None, typer.Option(help="0 to 1")] = None,
    top_k: Annotated[int | None, typer.Option(help="0: no limit")] = None,
    seed: Annotated[int | None, typer.Option(help="makes sampling repeatable")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="tokens that an answer may have")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="lines under way at once")] = 16,
) -> None:
    """Translate a text, or each line of a file or of stdin."""
    given = {
        "adapter": adapter,
        "source": source,
        "target": target,
        "format": None if format is _Format.TEXT else format.value,
        "alternatives": alternatives or None,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
    }
    options = cast("TranslateOptions", {k: v for k, v in given.items() if v is not None})
    if text is not None and input_path is not None:
        raise WrongUsageError("give a text or --input, not both")
    if alternatives and output_path is not None and not is_json_lines(output_path):
        raise WrongUsageError("--alternatives need an --output that ends in .jsonl")
    if stream and output_path is not None:
        raise WrongUsageError("--stream prints what comes; leave --output out")
    if format is _Format.HTML and text is None:
        text = _read_document(input_path)
    if text is not None:
        _one(session, text, options, stream=stream, output_path=output_path)
    elif stream:
        raise WrongUsageError("--stream is for one text; lines come out as they are done anyway")
    elif alternatives and output_path is None and not session.out.as_json:
        raise WrongUsageError("--alternatives to lines need --json")
    elif output_path is not None:
        if input_path is None:
            raise WrongUsageError("--output needs a text or --input; or redirect stdout")
        _file(session, input_path, output_path, options, concurrency)
    else:
        with _opened_lines(input_path) as lines:
            _lines(session, lines, options, concurrency)


def _one(
    session: Session,
    text: str,
    options: TranslateOptions,
    *,
    stream: bool,
    output_path: Path | None,
) -> None:
    out = session.out
    if stream:
        _stream(session, text, options)
        return
    translation = session.client.translate(text, **options)
    if output_path is not None:
        entry = Line(1, text, translation).to_dict()
        shown = json.dumps(entry, ensure_ascii=False)
        content = shown if is_json_lines(output_path) else translation.text
        output_path.write_text(f"{content}\n", encoding="utf-8")
    if out.as_json:
        out.json(translation)
    elif output_path is None:
        for each in (translation.text, *translation.alternatives):
            out.say(each)
    _warn_if_cut(session, translation)


def _stream(session: Session, text: str, options: TranslateOptions) -> None:
    out = session.out
    with session.client.translate(text, stream=True, **options) as pieces:
        for piece in pieces:
            if out.as_json:
                out.json(piece)
            else:
                out.say(piece.text, end="")
    assert pieces.result, "a stream that ends has its result"
    if out.as_json:
        out.json(pieces.result)
    else:
        out.say()
        for each in pieces.result.alternatives:
            out.say(each)
    _warn_if_cut(session, pieces.result)


def _warn_if_cut(session: Session, translation: Translation) -> None:
    if translation.finish_reason == "length":
        session.out.note("the translation was cut; --max-new-tokens allows more", style="yellow")


def _lines(
    session: Session, lines: Iterable[str], options: TranslateOptions, concurrency: int
) -> None:
    failed = 0
    many = session.client.translate_many(lines, concurrency=concurrency, **options)
    with closing(many) as translated:
        for line in translated:
            if session.out.as_json:
                session.out.json(line.to_dict())
            else:
                session.out.say(" ".join(line.text.splitlines()))
            failed += _report(session, line)
    if failed:
        raise typer.Exit(ExitCode.FAILED)


def _file(
    session: Session,
    input_path: Path,
    output_path: Path,
    options: TranslateOptions,
    concurrency: int,
) -> None:
    with _bar(session, input_path) as advance:
        report = session.client.translate_file(
            input_path, output_path, concurrency=concurrency, on_line=advance, **options
        )
    for line in report.failed:
        _report(session, line)
    if session.out.as_json:
        summary: dict[str, Any] = {
            "output": str(report.output),
            "lines": report.lines,
            "translated": report.translated,
            "resumed": report.resumed,
            "failed": [line.to_dict() for line in report.failed],
        }
        session.out.json(summary)
    else:
        resumed = f", {report.resumed} of them in an earlier run" if report.resumed else ""
        session.out.say(f"{report.output}: {report.lines} lines{resumed}")
    if report.failed:
        session.out.note(
            f"{len(report.failed)} lines failed and are empty; the same command tries them again"
        )
        raise typer.Exit(ExitCode.FAILED)


def _report(session: Session, line: Line) -> bool:
    """Whether the line has failed."""
    if line.error:
        session.out.note(f"line {line.number}: {line.error}", style="red")
    return line.error is not None


@contextmanager
def _bar(session: Session, input_path: Path) -> Iterator[OnLine]:
    with input_path.open("rb") as file:
        total = sum(1 for _ in file)
    with Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=session.out.err,
        disable=session.out.as_json or not session.out.err.is_terminal,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=total)
        yield lambda line: progress.update(task, completed=line.number)


def _read_document(input_path: Path | None) -> str:
    if input_path is None and sys.stdin.isatty():
        raise WrongUsageError("give a text or --input, or pipe one in")
    lines = sys.stdin.buffer if input_path is None else input_path.read_bytes().splitlines(True)
    return "\n".join(read_lines(lines, str(input_path or "stdin")))


@contextmanager
def _opened_lines(input_path: Path | None) -> Iterator[Iterator[str]]:
    if input_path is not None:
        with input_path.open("rb") as file:
            yield read_lines(file, str(input_path))
    elif sys.stdin.isatty():
        raise WrongUsageError("give a text or --input, or pipe one in")
    else:
        yield read_lines(sys.stdin.buffer, "stdin")
