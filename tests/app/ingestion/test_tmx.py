import pytest

from core.datasets import Row
from tests.app.ingestion.uploads import Ingestion, faults, warnings

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n'
ROWS = [Row(prompt="Tea & cake", completion="Tee <und> Kuchen"), Row(prompt="yes", completion="ja")]


def tmx(*units: str, source: str = 'srclang="en"', head: str = HEAD) -> str:
    header = f'<header creationtool="x" {source}><prop type="x">seg</prop></header>'
    return f'{head}<tmx version="1.4">{header}\n<body>\n' + "\n".join(units) + "\n</body></tmx>\n"


def unit(language: str = "xml:lang", **texts: str) -> str:
    tuvs = "".join(
        f'<tuv {language}="{code.replace("_", "-")}"><note>n</note><seg>{text}</seg></tuv>'
        for code, text in texts.items()
    )
    return f'<tu tuid="1"><note>a note</note>{tuvs}</tu>'


GOOD = [unit(en="Tea &amp; cake", de="Tee &lt;und&gt; Kuchen"), unit(de=" ja\n", en="yes")]


def test_units_are_rows_and_the_header_names_the_source(ingestion: Ingestion) -> None:
    dataset = ingestion.take(tmx(*GOOD), "memory.tmx")
    assert dataset.format == "tmx"
    assert dataset.columns == ["en", "de"]
    assert dataset.mapping == {"source": "en", "target": "de"}
    assert list(ingestion.store.rows(dataset.id)) == ROWS
    assert dataset.report.warnings == []


def test_the_header_may_name_the_other_language(ingestion: Ingestion) -> None:
    dataset = ingestion.take(tmx(*GOOD, source='srclang="DE"'), "memory.tmx")
    assert dataset.mapping == {"source": "de", "target": "en"}


def test_without_a_source_language_the_order_decides_with_a_warning(ingestion: Ingestion) -> None:
    dataset = ingestion.take(tmx(*GOOD, source='srclang="*all*"'), "memory.tmx")
    assert dataset.mapping == {"source": "en", "target": "de"}
    assert warnings(dataset) == {"mapping_guessed": []}


@pytest.mark.parametrize("name", ["memory.tmx", "memory.xml", "memory", "memory.txt"])
@pytest.mark.parametrize("attribute", ["xml:lang", "lang"])
def test_tmx_is_known_by_name_and_content(ingestion: Ingestion, name: str, attribute: str) -> None:
    units = [u.replace("xml:lang", attribute) for u in GOOD]
    assert ingestion.rows(tmx(*units), name) == ROWS


@pytest.mark.parametrize(
    ("source", "target"),
    [("en", "de"), ("EN-US", "de-AT"), ("en_us".replace("_", "-"), "de"), ("en", "de-at")],
)
def test_a_language_may_be_named_with_or_without_its_region(
    ingestion: Ingestion, source: str, target: str
) -> None:
    mapping = {"source": source, "target": target}
    for codes in (
        {"en_US": "a", "de_AT": "b"},
        {"EN": "a", "de": "b"},
        {"en_us": "a", "DE_at": "b"},
    ):
        dataset = ingestion.take(tmx(unit(**codes)), "memory.tmx", mapping=mapping)
        assert list(ingestion.store.rows(dataset.id)) == [Row(prompt="a", completion="b")]
        assert dataset.mapping == mapping


def test_regions_of_one_language_are_one_side(ingestion: Ingestion) -> None:
    units = [unit(en_US="a", de="b"), unit(en_GB="c", de="d"), unit(EN="e", de="f")]
    dataset = ingestion.take(tmx(*units, source='srclang="en-US"'), "memory.tmx")
    assert dataset.columns == ["en-US", "de", "en-GB", "en"]
    assert dataset.mapping == {"source": "en", "target": "de"}
    assert [row.prompt for row in ingestion.store.rows(dataset.id)] == ["a", "c", "e"]


def test_another_region_is_another_language_where_one_is_named(ingestion: Ingestion) -> None:
    error = ingestion.refusal(
        tmx(unit(pt_PT="a", en="b")), "memory.tmx", mapping={"source": "en", "target": "pt-BR"}
    )
    assert faults(error) == [(1, "pt-BR", "column_missing")]
    assert "the columns are 'pt-PT', 'en'" in error.message


def test_of_more_languages_two_must_be_named(ingestion: Ingestion) -> None:
    units = [unit(en="a", de="b", fr="c"), unit(en="d", fr="e"), unit(en="f", de="g")]
    error = ingestion.refusal(tmx(*units), "memory.tmx")
    assert faults(error) == [(1, None, "mapping_required")]
    assert "'en', 'de', 'fr'" in error.message

    dataset = ingestion.take(tmx(*units), "m.tmx", mapping={"source": "fr", "target": "en"})
    rows = list(ingestion.store.rows(dataset.id))
    assert [(r.prompt, r.completion) for r in rows] == [("c", "a"), ("e", "d")]
    assert warnings(dataset) == {"units_left_out": [7]}


def test_a_unit_with_one_side_is_a_fault(ingestion: Ingestion) -> None:
    units = [*GOOD, unit(en="alone"), unit(en="", de="x"), "<tu></tu>"]
    error = ingestion.refusal(tmx(*units), "memory.tmx")
    assert faults(error) == [
        (8, "de", "missing_columns"),
        (9, "en", "empty"),
        (10, "en", "missing_columns"),
    ]
    assert ingestion.rows(tmx(*units), "memory.tmx", on_error="skip") == ROWS


def test_codes_of_other_formats_are_no_text(ingestion: Ingestion) -> None:
    text = (
        'Press <bpt i="1">&lt;b&gt;<sub>hidden</sub></bpt>the <hi type="x">red</hi> button'
        '<ept i="1">&lt;/b&gt;</ept><ph>&lt;br/&gt;</ph> <![CDATA[& wait]]>'
    )
    [row] = ingestion.rows(tmx(unit(en=text, de="x")), "memory.tmx")
    assert row.prompt == "Press the red button & wait"


def test_segments_may_be_cut_by_the_border_of_a_chunk(
    ingestion: Ingestion, monkeypatch: pytest.MonkeyPatch
) -> None:
    for num_chars in (1, 7, 64):
        monkeypatch.setattr("app.ingestion.tmx._CHUNK_CHARS", num_chars)
        assert ingestion.rows(tmx(*GOOD), "memory.tmx") == ROWS


@pytest.mark.parametrize(
    ("codec", "declared"),
    [
        ("utf-16", "UTF-16"),
        ("utf-8-sig", "UTF-8"),
        ("utf-8", "UTF-16"),  # as converters leave it
        ("gb18030", "GB18030"),
        ("gbk", "gb2312"),
        ("iso-8859-1", "ISO-8859-1"),
    ],
)
def test_the_declared_encoding_counts(ingestion: Ingestion, codec: str, declared: str) -> None:
    text = "é" if codec == "iso-8859-1" else "茶"
    content = tmx(unit(en="tea", de=text), head=HEAD.replace("UTF-8", declared))
    [row] = ingestion.rows(content.encode(codec), "memory.tmx")
    assert row.completion == text


@pytest.mark.parametrize(
    ("content", "line", "code"),
    [
        (tmx(*GOOD).replace("</seg></tuv></tu>", "</seg></tu>", 1), 5, "xml_syntax"),
        (tmx(*GOOD)[:-20], 7, "xml_syntax"),
        (tmx(*GOOD) + "<more/>", 9, "xml_syntax"),
        (tmx(unit(en="a", de="&nbsp;")), 5, "xml_entities"),
        (tmx(unit(en="a", de="&nbsp;"), head=""), 3, "xml_syntax"),
        (tmx(unit(en="a", de="&#0;")), 5, "xml_syntax"),
        ("<html><tmx/></html>", 1, "not_tmx"),
        (tmx("<tu><tuv><seg>a</seg></tuv></tu>"), 5, "language_missing"),
        (tmx(unit(en="a", de="b")).replace('"de"', f'"{"x" * 50}"'), 5, "language_missing"),
        (tmx(unit(**{f"x{i}": "a" for i in range(201)})), 5, "too_many_languages"),
        (tmx(unit(en="a" * 5_000_000, de="b")), 5, "line_too_long"),
        (tmx(), 1, "no_rows"),
        ("", 1, "no_rows"),
        ("no xml", 1, "xml_syntax"),
    ],
    ids=lambda value: str(value)[-20:],
)
def test_faults_have_a_line(ingestion: Ingestion, content: str, line: int, code: str) -> None:
    error = ingestion.refusal(content, "memory.tmx", on_error="skip")
    assert [(at, what) for at, _, what in faults(error)] == [(line, code)]


BOMB = """<?xml version="1.0"?>
<!DOCTYPE tmx [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
"""


@pytest.mark.parametrize(
    "head",
    [
        BOMB,
        '<!DOCTYPE tmx [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n',
        '<!DOCTYPE tmx [<!ENTITY % a SYSTEM "http://localhost/x"> %a;]>\n',
    ],
)
def test_entities_are_refused(ingestion: Ingestion, head: str) -> None:
    error = ingestion.refusal(tmx(unit(en="&c;", de="&a;"), head=head), "memory.tmx")
    assert [code for *_, code in faults(error)] == ["xml_entities"]


def test_a_mapping_to_a_third_column_is_refused(ingestion: Ingestion) -> None:
    mapping = {"source": "en", "input": "fr", "target": "de"}
    error = ingestion.refusal(tmx(*GOOD), "memory.tmx", mapping=mapping)
    assert faults(error) == [(1, "fr", "column_missing")]


def test_memory_does_not_grow_with_the_file(
    ingestion: Ingestion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.ingestion.ingest._BATCH_CHARS", 100_000)
    monkeypatch.setattr("app.ingestion.tmx._NUM_SAMPLED", 5)
    text = "word" * 8000
    data = tmx(*(unit(en=f"{i} {text}", de=f"{text} {i}") for i in range(200))).encode()  # 13 MB
    assert ingestion.peak_memory(data, "memory.tmx") < len(data) / 2
