"""A version on its own: its seal, its reference and the hash of its files."""

import json
from pathlib import Path

from core.adapter_version import CONFIG_FILE, SEAL_FILE, AdapterVersion, Seal, content_sha256
from tests.core.versions import stage
from tests.seals import make_seal


def test_content_hash_sees_what_peft_reads(tmp_path: Path) -> None:
    folder = stage(tmp_path / "a")
    before = content_sha256(folder)
    (folder / "README.md").write_text("words")
    assert content_sha256(folder) == before
    (folder / CONFIG_FILE).write_text('{"r": 2}')
    assert content_sha256(folder) != before


def test_seal_with_members_of_a_later_release(tmp_path: Path) -> None:
    written = json.loads((stage(tmp_path / "a") / SEAL_FILE).read_text())
    seal = Seal.model_validate_json(json.dumps(written | {"from_the_future": 1}))
    assert seal.job_id == "job"
    assert json.loads(seal.model_dump_json()) == written


def test_references(tmp_path: Path) -> None:
    seal = make_seal()
    version = AdapterVersion(name="yoda", version=2, path=tmp_path, seal=seal)
    assert (version.ref, version.is_checkpoint) == ("yoda@2", False)
    checkpoint = AdapterVersion.of_job("job-1", 40, tmp_path, seal)
    assert (checkpoint.ref, checkpoint.is_checkpoint) == ("job:job-1@40", True)
