"""One upload -> one dataset on the volume, or a refusal that names every faulty line and leaves nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import BinaryIO, Literal, NoReturn

from app.ingestion.mapping import Mapping, has_common_names, settle_mapping
from app.ingestion.pairs import Pair, read_pair
from app.ingestion.reader import OpenedTable, opened_table
from app.ingestion.records import Table, UnreadableError, printable
from app.ingestion.report import ReportBuilder
from app.ingestion.review import review
from app.ingestion.scripts import ScriptTally
from app.ingestion.seen import Seen, SeenRows
from core.datasets import ROWS_FILE, Dataset, DatasetStore, Exchange, Row, RowError, RowWriter
from core.errors import InvalidError
from core.training_config import TrainingSection
from core.volume import Volume

OnError = Literal["fail", "skip"]
CountTokens = Callable[[list[str]], list[int]]

_BATCH_ROWS = 512
_BATCH_CHARS = 4 * 1024 * 1024  # beyond which a batch is not filled up
_NUM_PREVIEWED = 5
_MAX_PREVIEW_CHARS = 2000
_MAX_PREVIEW_EXCHANGES = 20
_MAX_NAME_CHARS = 200


@dataclass(frozen=True)
class Upload:
    """A file as it came, and what its sender said of it.

    `name` is the file's own if there is none; `encoding` is that of a text, by any name that Python knows.
    """

    file: BinaryIO
    filename: str
    name: str | None = None
    mapping: Mapping | None = None
    on_error: OnError = "fail"
    encoding: str | None = None


def ingest(
    upload: Upload,
    *,
    store: DatasetStore,
    volume: Volume,
    count_tokens: CountTokens,
    max_tokens: int = TrainingSection().max_length,
) -> Dataset:
    """Streams the rows to the volume. The same rows again give the dataset that is there already.

    Raises InvalidError `dataset_invalid`, with the report, or `encoding_unknown`, and UnsupportedFormatError.
    """
    report = ReportBuilder(max_tokens)
    try:
        with (
            opened_table(upload.file, upload.filename, upload.encoding or None) as opened,
            volume.staged_folder() as staged,
        ):
            table = opened.table
            mapping = _settle_mapping(upload.mapping, opened, report)
            scripts = ScriptTally()
            with RowWriter(staged / ROWS_FILE) as writer:
                sink = _Sink(writer, report, scripts, count_tokens)
                for batch in _batches(_usable_pairs(table, mapping, report)):
                    # Nothing will be kept once a row has failed; the rest is read for the report.
                    if upload.on_error == "skip" or not report.num_errors:
                        sink.write(batch)
            report.add_tally(
                table.left_out,
                "units_left_out",
                f"hold other languages than {mapping.source} and {mapping.target}, and were left out",
            )
            if not report.num_rows or (report.num_errors and upload.on_error == "fail"):
                _refuse(upload, report)
            review(staged / ROWS_FILE, scripts, report)
            dataset = Dataset(
                id=f"ds-{writer.sha256[:16]}",
                name=_dataset_name(upload),
                format=opened.format,
                rows=report.num_rows,
                columns=[printable(column) for column in table.columns],
                mapping=mapping.named(),
                sha256=writer.sha256,
                created_at=datetime.now(UTC),
                report=report.build(),
                preview=sink.preview,
            )
            kept = store.save(dataset, staged)
    except UnreadableError as error:
        report.add_error(error.fault)
        _refuse(upload, report, first=error.fault)
    # The dataset may be there from another upload, with other faults; the answer tells of this one's.
    return kept.model_copy(update={"report": dataset.report})


class _Sink:
    """Writes the rows, counting tokens and noting scripts as it goes."""

    def __init__(
        self,
        writer: RowWriter,
        report: ReportBuilder,
        scripts: ScriptTally,
        count_tokens: CountTokens,
    ) -> None:
        self._writer = writer
        self._report = report
        self._scripts = scripts
        self._count_tokens = count_tokens
        self.preview: list[Row] = []

    def write(self, batch: list[Pair]) -> None:
        rows = [pair.row for pair in batch]
        self.preview += [_clipped(row) for row in rows[: _NUM_PREVIEWED - len(self.preview)]]
        self._writer.write(rows)
        texts = [[t for e in row.exchanges for t in (e.prompt, e.completion)] for row in rows]
        counts = iter(self._count_tokens([text for of_row in texts for text in of_row]))
        for pair, of_row in zip(batch, texts, strict=True):
            self._report.add_row(pair.line, sum(next(counts) for _ in of_row))
            self._scripts.add(pair.row.prompt, pair.row.completion)


def _settle_mapping(given: Mapping | None, opened: OpenedTable, report: ReportBuilder) -> Mapping:
    encoding, table = opened.encoding, opened.table
    if encoding is not None and encoding.is_detected:
        report.add_warning(
            "encoding_detected",
            f"the file is not UTF-8 and was read as {encoding.codec}; send encoding if it is otherwise",
        )
    if not table.columns:
        # No row could be read, or there is none: each is reported as it comes.
        return given or Mapping(source="prompt", target="completion")
    mapping = settle_mapping(given, table)
    if given is None and table.sides is None and not has_common_names(mapping):
        report.add_warning(
            "mapping_guessed",
            f"{printable(str(mapping.source))!r} was taken as the source and "
            f"{printable(str(mapping.target))!r} as the target, as they come first and second; "
            "send mapping if it is otherwise",
        )
    return mapping


def _usable_pairs(table: Table, mapping: Mapping, report: ReportBuilder) -> Iterator[Pair]:
    """Pairs worth keeping; everything else goes into the report."""
    seen = SeenRows()
    for record in table.read(mapping.columns()):
        pair = record if isinstance(record, RowError) else read_pair(record, mapping)
        if isinstance(pair, RowError):
            report.add_error(pair)
            continue
        verdict = seen.add(pair.row)
        if verdict is Seen.DUPLICATE:
            report.duplicates.add(pair.line)
            continue
        if verdict is Seen.CONTRADICTION:
            report.contradictions.add(pair.line)
        if pair.row.prompt == pair.row.completion:
            report.copies.add(pair.line)
        if pair.has_system:
            report.systems.add(pair.line)
        yield pair


def _batches(pairs: Iterator[Pair]) -> Iterator[list[Pair]]:
    batch: list[Pair] = []
    num_chars = 0
    for pair in pairs:
        batch.append(pair)
        num_chars += sum(len(e.prompt) + len(e.completion) for e in pair.row.exchanges)
        if len(batch) == _BATCH_ROWS or num_chars >= _BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _refuse(upload: Upload, report: ReportBuilder, first: RowError | None = None) -> NoReturn:
    """`first`: the fault to name, if it is not the first in the file."""
    if not report.num_errors:
        report.add_error(RowError(line=1, code="no_rows", message="there are no rows"))
    fault = first or report.first_error
    assert fault is not None
    where = f"line {fault.line}" + (f", column {fault.column!r}" if fault.column else "")
    message = f"{_filename(upload)!r}, {where}: {fault.message}"
    if report.num_errors > 1:
        message += f"; {report.num_errors - 1:,} more lines are faulty, see report"
    if fault.code != "no_rows" and first is None and upload.on_error == "fail":
        message += "; on_error=skip drops such rows"
    report.forget_tokens()  # not all rows were counted
    raise InvalidError(
        message, code="dataset_invalid", report=report.build().model_dump(mode="json")
    )


def _filename(upload: Upload) -> str:
    return printable(PurePath(upload.filename).name)


def _dataset_name(upload: Upload) -> str:
    name = (upload.name or "").strip() or PurePath(upload.filename).stem or "dataset"
    return printable(name, _MAX_NAME_CHARS)


def _clipped(row: Row) -> Row:
    first, *others = [
        Exchange(
            prompt=printable(exchange.prompt, _MAX_PREVIEW_CHARS),
            completion=printable(exchange.completion, _MAX_PREVIEW_CHARS),
        )
        for exchange in row.exchanges[:_MAX_PREVIEW_EXCHANGES]
    ]
    return Row(prompt=first.prompt, completion=first.completion, further=tuple(others))
