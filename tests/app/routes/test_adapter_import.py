"""POST /adapters: what was trained elsewhere becomes a version, or is refused with all that is wrong with it."""

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from app import adapter_import
from core.adapter_version import CONFIG_FILE, SEAL_FILE, WEIGHTS_FILE
from core.adapters import AdapterRegistry
from core.base_model import EMBEDDED, fingerprint
from core.settings import Settings
from core.volume import Volume
from tests.app.harness import load_reference, make_adapter
from tests.tiny_models import make_tiny_model

TEXT = "The rain has stopped and the river is quiet."


@pytest.fixture
def folder(app_settings: Settings, tmp_path: Path) -> Path:
    """The PEFT folder of the adapter `pirate`, without its seal, for each test to spoil."""
    source = app_settings.data_dir / "adapters" / "pirate" / "versions" / "1"
    shutil.copytree(source, tmp_path / "peft")
    (tmp_path / "peft" / SEAL_FILE).unlink()
    return tmp_path / "peft"


@pytest.fixture(autouse=True)
def registry(app_settings: Settings) -> Iterator[AdapterRegistry]:
    volume = Volume(app_settings.data_dir)
    yield AdapterRegistry(volume)
    shutil.rmtree(volume.adapters / "new", ignore_errors=True)
    assert list((volume.root / "staging").iterdir()) == [], "nothing is left behind"


def zipped(folder: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"some/where/{path.name}")
    return packed.getvalue()


def tarred(folder: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder, arcname="checkpoint")
    return packed.getvalue()


def post(client: TestClient, archive: bytes, **form: Any) -> Any:
    return client.post("/adapters", files={"file": ("a.zip", archive)}, data={"name": "new"} | form)


def refused(client: TestClient, archive: bytes, code: str = "adapter_unusable", **form: Any) -> str:
    response = post(client, archive, **form)
    assert response.status_code == 422, response.text
    assert response.json()["code"] == code, response.text
    assert client.get("/adapters/new").status_code == 404, "nothing is published"
    return str(response.json()["detail"])


def answer(client: TestClient, adapter: str) -> Any:
    response = client.post("/translate", json={"q": TEXT, "adapter": adapter})
    assert response.status_code == 200, response.text
    return response.json()


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


@pytest.mark.parametrize("make", [zipped, tarred])
def test_a_plain_peft_folder(
    client: TestClient,
    folder: Path,
    registry: AdapterRegistry,
    make: Callable[[Path], bytes],
) -> None:
    (folder / "optimizer.pt").write_bytes(b"never looked at")
    response = post(client, make(folder), source="en", target="en-x-new", description="Arr.")
    assert response.status_code == 201, response.text
    version = response.json()
    assert response.headers["Location"] == "/adapters/new/versions/1"
    assert client.get(response.headers["Location"]).json() == version
    assert (version["ref"], version["current"]) == ("new@1", True), "the first of its name"
    seal = version["seal"]
    assert (seal["source"], seal["target"], seal["description"]) == ("en", "en-x-new", "Arr.")
    assert seal["stop_token_ids"] == [3, 7], "as this base model ends its turns"
    assert seal["base_fingerprint"] == fingerprint(EMBEDDED)
    assert seal["prompt"]["template"] == "{text}"
    assert answer(client, "new")["translatedText"] == answer(client, "pirate")["translatedText"]
    kept = {path.name for path in registry.version("new", 1).path.iterdir()}
    assert kept <= {CONFIG_FILE, WEIGHTS_FILE, SEAL_FILE, "README.md"}


def test_only_the_first_becomes_current_unasked(client: TestClient, folder: Path) -> None:
    archive = zipped(folder)
    assert post(client, archive).json()["current"] is True
    assert post(client, archive).json()["current"] is False
    assert client.get("/adapters/new").json()["current"] == 1
    third = post(client, archive, make_current="true").json()
    assert (third["version"], third["current"]) == (3, True)


def test_a_prompt_of_ones_own(client: TestClient, folder: Path) -> None:
    prompt = {"system": "Speak as a pirate.", "template": "Say: {text}"}
    version = post(client, zipped(folder), prompt=json.dumps(prompt)).json()
    assert version["seal"]["prompt"]["system"] == "Speak as a pirate."
    plain = answer(client, "pirate")["usage"]["prompt_tokens"]
    assert answer(client, "new")["usage"]["prompt_tokens"] > plain
    assert (version["seal"]["source"], version["seal"]["target"]) == ("und", "und")


def test_what_was_exported_comes_back_as_it_was(client: TestClient) -> None:
    exported = client.get("/adapters/modern/versions/1/download").content
    before = client.get("/adapters/modern/versions/1").json()["seal"]
    version = post(client, exported).json()
    assert version["seal"] == before
    text = "王怒而去，遂不复见。"
    ours, theirs = (
        client.post("/translate", json={"q": text, "adapter": name}).json()["translatedText"]
        for name in ("new", "modern")
    )
    assert ours == theirs
    renamed = post(client, exported, target="en", description="Other.").json()["seal"]
    assert (renamed["target"], renamed["description"]) == ("en", "Other.")
    assert renamed["prompt"] == before["prompt"]


def unsealed_copy(client: TestClient, folder: Path, **changes: Any) -> bytes:
    """The export of `pirate`, with another seal."""
    seal = client.get("/adapters/pirate/versions/1").json()["seal"]
    (folder / SEAL_FILE).write_text(json.dumps(seal | changes))
    return zipped(folder)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"base_fingerprint": "another"}, "adapter_for_other_base", "the archive was trained"),
        ({"content_sha256": "0"}, "seal_invalid", "changed since"),
        ({"stop_token_ids": [10**6]}, "seal_invalid", "vocabulary"),
        ({"stop_token_ids": [-1]}, "seal_invalid", "vocabulary"),
        ({"source": "../x"}, "seal_invalid", "language tag"),
        ({"decoding": {"temperature": -1}}, "seal_invalid", "temperature"),
        ({"prompt": {"chat_template": "{{ 1 }}"}}, "seal_invalid", "chat template"),
        ({"prompt": {"template": "no text", "chat_template": "x"}}, "seal_invalid", "{text}"),
        ({"prompt": None}, "seal_invalid", "prompt"),
    ],
)
def test_seals_that_are_not_taken(
    client: TestClient, folder: Path, changes: dict[str, Any], code: str, words: str
) -> None:
    assert words in refused(client, unsealed_copy(client, folder, **changes), code)


def test_a_strange_chat_template_gives_way_to_a_prompt(client: TestClient, folder: Path) -> None:
    archive = unsealed_copy(client, folder, prompt={"chat_template": "{{ 1 }}"})
    version = post(client, archive, prompt='{"template": "{text}"}')
    assert version.status_code == 201, version.text
    assert version.json()["seal"]["prompt"]["chat_template"] != "{{ 1 }}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "fully trained modules"),
        ({"bias": "all"}, "bias 'all'"),
        ({"init_lora_weights": "pissa"}, "rewrites the base model"),
        ({"r": 7}, "shape (4, 384), expected (7, 384)"),
        ({"r": 0}, "r: "),
        ({"r": None}, "r: "),
        ({"target_modules": ["q_proj"]}, "'q_proj'"),
        ({"rank_pattern": {"(a+)+$": 2}}, "no name of a layer"),
        ({"alpha_pattern": {"(a|a)*$": 2}}, "no name of a layer"),
        ({"target_modules": "(.*)*!"}, "target_modules has '(.*)*!', which is no name of a layer"),
        ({"exclude_modules": "(.*)*!"}, "exclude_modules"),
        ({"layers_pattern": ["(.*)*!"]}, "layers_pattern"),
        ({"lora_alpha": "many"}, "lora_alpha"),
    ],
)
def test_configs_that_are_not_served(
    client: TestClient, folder: Path, changes: dict[str, Any], words: str
) -> None:
    change_config(folder, **changes)
    assert words in refused(client, zipped(folder))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000])
def test_configs_that_are_none(client: TestClient, folder: Path, content: bytes) -> None:
    (folder / CONFIG_FILE).write_bytes(content)
    assert CONFIG_FILE in refused(client, zipped(folder))


KEY = "base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({KEY: torch.full_like(t[KEY], float("nan"))}), "not finite"),
        (lambda t: t.update({KEY: torch.full_like(t[KEY], float("inf"))}), "not finite"),
        (lambda t: t.pop(KEY), "not a LoRA pair"),
        (lambda t: t.update({KEY: t[KEY].T.contiguous()}), "shape (384, 4)"),
        (lambda t: t.update({KEY: t[KEY].long()}), "dtype I64"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(2)}), "lm_head.weight"),
        (lambda t: t.update({KEY.replace(".0.", ".99."): t[KEY].clone()}), "layers.99"),
        (lambda t: t.clear(), "no tensors"),
    ],
)
def test_weights_that_do_not_fit(
    client: TestClient,
    folder: Path,
    change: Callable[[dict[str, torch.Tensor]], None],
    words: str,
) -> None:
    change_weights(folder, change)
    assert words in refused(client, zipped(folder))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"pickle",
        b"\xff" * 64,
        (10**15).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[99],"data_offsets":[0,396]}}  ',
    ],
)
def test_weights_that_are_no_safetensors(client: TestClient, folder: Path, content: bytes) -> None:
    (folder / WEIGHTS_FILE).write_bytes(content)
    assert WEIGHTS_FILE in refused(client, zipped(folder))


def test_a_header_over_the_limit(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered: no more than 1 MiB may be sent to this server."""
    size = int.from_bytes((folder / WEIGHTS_FILE).read_bytes()[:8], "little")
    monkeypatch.setattr(adapter_import, "MAX_HEADER_BYTES", size - 1)
    detail = refused(client, zipped(folder))
    assert f"a header of {size} bytes" in detail
    assert f"up to {size - 1} are accepted" in detail
    monkeypatch.setattr(adapter_import, "MAX_HEADER_BYTES", size)
    assert post(client, zipped(folder)).status_code == 201


def test_a_seal_is_refused_in_few_words(client: TestClient, folder: Path) -> None:
    ids = ["many"] * 1000
    detail = refused(client, unsealed_copy(client, folder, stop_token_ids=ids), "seal_invalid")
    assert len(detail) < 600


def test_a_rank_that_no_request_could_be_given(
    client: TestClient, folder: Path, app_settings: Settings
) -> None:
    rank = app_settings.lora_width + 1

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for key, tensor in tensors.items():
            shape = (rank, tensor.shape[1]) if "lora_A" in key else (tensor.shape[0], rank)
            tensors[key] = torch.zeros(shape, dtype=torch.float16)

    change_config(folder, r=rank)
    change_weights(folder, lambda t: [t.pop(k) for k in list(t)[2:]] and widen(t))  # type: ignore[func-returns-value]
    assert "columns" in refused(client, zipped(folder))


def test_an_adapter_of_another_architecture(client: TestClient, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "base", "llama")
    other = make_adapter(tmp_path, load_reference(tmp_path / "base", nf4=False), "other")
    (other.path / "README.md").unlink(missing_ok=True)
    assert "q_proj" in refused(client, zipped(other.path))


@pytest.mark.parametrize(
    ("form", "code", "words"),
    [
        ({"name": "Not A Name"}, "adapter_name_invalid", "Not A Name"),
        ({"name": "base"}, "adapter_name_invalid", "base"),
        ({"source": "not a language"}, "invalid", "source"),
        ({"prompt": '{"template": "no text"}'}, "invalid", "{text}"),
        ({"prompt": '{"template": "{text}\\ud800"}'}, "invalid", "template"),
        ({"prompt": '{"sytem": "x"}'}, "invalid", "sytem"),
        ({"make_current": "perhaps"}, "invalid", "make_current"),
        ({"curent": "true"}, "invalid", "curent"),
        ({"description": "x" * 2001}, "invalid", "description"),
    ],
)
def test_forms_that_are_wrong(
    client: TestClient, folder: Path, form: dict[str, str], code: str, words: str
) -> None:
    assert words in refused(client, zipped(folder), code, **form)


def test_requests_that_are_no_import(client: TestClient, folder: Path) -> None:
    assert client.post("/adapters", json={"name": "new"}).status_code == 415
    no_file = client.post("/adapters", files={"name": (None, "new")})
    assert (no_file.status_code, no_file.json()["code"]) == (422, "file_missing")
    no_name = client.post("/adapters", files={"file": ("a.zip", zipped(folder))})
    assert (no_name.status_code, no_name.json()["code"]) == (422, "invalid")
    assert post(client, zipped(folder), prompt="{").status_code == 400
    assert "archive" in refused(client, b"no archive", "archive_invalid")


def test_an_archive_over_the_limit(client: TestClient) -> None:
    """1 MiB is allowed to this server; a zip may hold more than it looks."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONFIG_FILE, "{}")
        archive.writestr(WEIGHTS_FILE, bytes(2 << 20))
    response = post(client, packed.getvalue())
    assert (response.status_code, response.json()["code"]) == (413, "too_large")
    response = post(client, bytes(2 << 20))
    assert (response.status_code, response.json()["code"]) == (413, "too_large")
