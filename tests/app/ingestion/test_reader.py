"""What does not depend on the format."""

import io
import json
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq

from core.datasets import Row
from tests.app.ingestion.uploads import Ingestion

ROWS = [
    Row(prompt="Tea, “hot” & <new>", completion='左师公曰: "茶"'),
    Row(prompt="two\nlines", completion="é\tè"),
]


def in_every_format() -> dict[str, bytes]:
    dicts = [{"prompt": r.prompt, "completion": r.completion} for r in ROWS]
    quoted = [['"{}"'.format(v.replace('"', '""')) for v in row.values()] for row in dicts]
    units = "".join(
        f'<tu><tuv xml:lang="en"><seg>{escape(row["prompt"])}</seg></tuv>'
        f'<tuv xml:lang="zh"><seg>{escape(row["completion"])}</seg></tuv></tu>'
        for row in dicts
    )
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(dicts), parquet)
    csv = "prompt,completion\n" + "".join(",".join(fields) + "\n" for fields in quoted)
    return {
        "a.csv": csv.encode(),
        "utf16.csv": csv.encode("utf-16"),
        "semicolons.csv": csv.replace('",', '";').replace(",c", ";c").encode("utf-8-sig"),
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in dicts).encode(),
        "messages.jsonl": "".join(
            json.dumps({"messages": [{"user": row["prompt"], "assistant": row["completion"]}]})
            + "\n"
            for row in dicts
        ).encode("gb18030"),
        "a.json": json.dumps(dicts, indent=1).encode(),
        "a.tmx": f'<tmx><header srclang="en"/><body>{units}</body></tmx>'.encode(),
        "a.parquet": parquet.getvalue(),
    }


def test_the_same_rows_have_the_same_address_in_every_format(ingestion: Ingestion) -> None:
    datasets = [ingestion.take(data, name) for name, data in in_every_format().items()]
    assert [list(ingestion.store.rows(d.id)) for d in datasets] == [ROWS] * len(datasets)
    assert len({dataset.sha256 for dataset in datasets}) == 1
    assert [p.name for p in ingestion.volume.datasets.iterdir()] == [datasets[0].id]


def test_the_upload_is_left_open_in_every_format(ingestion: Ingestion) -> None:
    for name, data in in_every_format().items():
        for content in (data, data[: len(data) // 2]):
            file = ingestion.try_out(content, name)
            assert not file.closed
