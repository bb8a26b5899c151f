"""Adapters that may be removed from the volume at any time: a running job's checkpoints."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.engine.engine import Engine
from core.adapter_version import AdapterVersion
from core.errors import InvalidError, NotFoundError
from tests.app.harness import load_nf4, make_adapter, make_request, peft_greedy, start_engine
from tests.app.tiny import Tiny

PROMPT = [5, 17, 60, 33, 9]


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> Iterator[Engine]:
    engine = start_engine(load_nf4(tiny.folder))
    yield engine
    engine.stop()


def checkpoint(tiny: Tiny, folder: Path, job_id: str, step: int) -> AdapterVersion:
    made = make_adapter(folder, tiny.reference, f"{job_id}-{step}", seed=step)
    return AdapterVersion.of_job(job_id, step, made.path, made.seal)


def answer(engine: Engine, version: AdapterVersion) -> list[int]:
    request = make_request(PROMPT, version)
    engine.submit(request.sequence)
    update = request.result()
    if update.error is not None:
        raise update.error
    return update.token_ids


def test_what_was_read_may_be_removed(engine: Engine, tiny: Tiny, tmp_path: Path) -> None:
    version = checkpoint(tiny, tmp_path, "removed", 4)
    expected = peft_greedy(tiny.reference, PROMPT, version, 12)
    engine.read_adapter(version)
    shutil.rmtree(version.path)
    assert answer(engine, version) == expected
    engine.read_adapter(version)  # resident: nothing to read
    assert answer(engine, version) == expected


def test_what_has_gone_is_said_so(engine: Engine, tiny: Tiny, tmp_path: Path) -> None:
    version = checkpoint(tiny, tmp_path, "gone", 4)
    shutil.rmtree(version.path)
    for ask in (engine.read_adapter, lambda v: answer(engine, v)):
        with pytest.raises(NotFoundError) as caught:
            ask(version)
        assert caught.value.code == "adapter_not_found"
        assert str(tmp_path) not in caught.value.message


def test_what_does_not_fit_is_refused_when_it_is_read(
    engine: Engine, tiny: Tiny, tmp_path: Path
) -> None:
    made = make_adapter(tmp_path, tiny.reference, "wide", r=65, target_modules=["o_proj"])
    version = AdapterVersion.of_job("wide", 1, made.path, made.seal)
    for _ in range(2):
        with pytest.raises(InvalidError) as caught:
            engine.read_adapter(version)
        assert "rank 65 is over the bank's 64 columns" in caught.value.message


def test_a_newer_one_takes_the_place_of_older_ones(
    engine: Engine, tiny: Tiny, tmp_path: Path
) -> None:
    versions = [checkpoint(tiny, tmp_path, "job", step) for step in (4, 8, 12)]
    other = checkpoint(tiny, tmp_path, "other", 1)
    expected = [peft_greedy(tiny.reference, PROMPT, v, 12) for v in versions]
    num_free = engine.stats().num_free_lora_columns
    for version in (other, *versions[:2]):
        answer(engine, version)
    resident = engine.resident_adapters
    assert versions[1].ref in resident
    assert other.ref in resident
    assert versions[0].ref not in resident
    assert engine.stats().num_free_lora_columns == num_free - 8
    host_bytes = engine.stats().num_adapter_host_bytes
    # An older one can be asked for, and stays until a newer one comes.
    assert answer(engine, versions[0]) == expected[0]
    assert {v.ref for v in versions[:2]} <= set(engine.resident_adapters)
    assert answer(engine, versions[2]) == expected[2]
    assert not {v.ref for v in versions[:2]} & set(engine.resident_adapters)
    assert engine.stats().num_adapter_host_bytes == host_bytes
    for version in versions:
        shutil.rmtree(version.path)
    with pytest.raises(NotFoundError):  # it is not in host memory either
        answer(engine, versions[0])
    assert answer(engine, versions[2]) == expected[2]
