"""Pushing packs to the hub and pulling them from it, against a stand-in on this machine."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from random_packs import IDENTITY, make_pack
from stand_in_hub import TOKEN, StandInHub

from mlx_emotion.errors import MLXEmotionError, PackError, UsageError
from mlx_emotion.vectors import EmotionVectors, hub

REPO = "somebody/feelings"


@pytest.fixture(scope="module")
def server():
    with StandInHub() as running:
        yield running


@pytest.fixture
def stand_in(server, monkeypatch):
    """The stand-in, empty and without a fault, in the hub's place."""
    from huggingface_hub import constants

    server.files, server.objects, server.fault, server.faults, server.requests = {}, {}, None, [], []
    # huggingface_hub reads HF_ENDPOINT and the like once, at its import.
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol that the stand-in has not
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return server


@pytest.fixture
def pack(tmp_path) -> EmotionVectors:
    found = make_pack()
    found.save(tmp_path / "model-attention.safetensors")
    return found


def test_push_and_pull(stand_in, pack, tmp_path):
    assert hub.push(pack, REPO) == f"{stand_in.url}/{REPO}/commit/0"
    assert set(stand_in.files[REPO]) == {"model-attention.safetensors", "README.md"}
    (path,) = hub.pull(REPO, tmp_path / "pulled", IDENTITY)
    assert path.name == "somebody--feelings--model-attention.safetensors"
    assert path.read_bytes() == pack.path.read_bytes()
    back = EmotionVectors.load(path)
    assert dataclasses.asdict(back.info) == dataclasses.asdict(pack.info)
    assert np.array_equal(back["joy"], pack["joy"])


def test_the_pack_goes_as_an_object_and_the_card_with_the_commit(stand_in, pack):
    hub.push(pack, REPO)
    (oid,) = stand_in.objects
    assert stand_in.objects[oid] == pack.path.read_bytes()
    steps = ("preupload", "objects/batch", "PUT /upload/", "lfs-verify", "commit")
    assert [next((s for s in steps if s in r), None) for r in stand_in.requests if r[:3] != "GET"][-5:] == list(steps)
    stand_in.requests.clear()
    hub.push(pack, REPO)  # the same again
    assert not any(r.startswith("PUT") for r in stand_in.requests)


@pytest.mark.parametrize("part", ["preupload", "objects/batch", "/upload/", "lfs-verify", "/commit/"])
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (401, r"refused \(401\).*hf auth login"),
        (404, r"no such repository \(404\)"),
        (500, r"failed \(500\); try again later"),
        (413, r"answered 413"),
        ("gone", "disconnected.*; try again"),
    ],
)
def test_a_push_that_breaks_off_halfway(part, fault, told, stand_in, pack, capfd):
    stand_in.faults = [(part, fault)]
    with pytest.raises(PackError, match=told) as error:
        hub.push(pack, REPO)
    assert REPO in str(error.value)
    assert "\n" not in str(error.value)
    assert stand_in.files[REPO] == {}
    assert "Retrying" not in capfd.readouterr().err


def test_a_push_that_the_hub_has_no_room_for(stand_in, pack):
    stand_in.fault = "full"
    with pytest.raises(PackError, match="You have used up your storage"):
        hub.push(pack, REPO)


@pytest.mark.parametrize(
    ("fault", "told"),
    [(401, r"refused \(401\)"), (403, r"refused \(403\)"), (404, r"not there \(404\)"), (500, r"failed \(500\)")],
)
def test_a_repository_that_is_listed_but_not_handed_out(fault, told, stand_in, pack, tmp_path):
    stand_in.files[REPO] = {"pack.safetensors": pack.path.read_bytes()}
    stand_in.faults = [("/resolve/", fault)]
    with pytest.raises(PackError, match=told) as error:
        hub.pull(REPO, tmp_path / "pulled")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize(("fault", "told"), [(403, r"refused \(403\)"), (503, r"failed \(503\); try again later")])
def test_a_pack_that_is_refused_when_its_turn_comes(fault, told, stand_in, pack, tmp_path, monkeypatch):
    stand_in.files[REPO] = {"pack.safetensors": pack.path.read_bytes()}
    looked_at = hub._remote_info

    def then_refused(api, repo, name):
        info = looked_at(api, repo, name)
        stand_in.faults = [("/resolve/", fault)]
        return info

    monkeypatch.setattr(hub, "_remote_info", then_refused)
    with pytest.raises(PackError, match=told) as error:
        hub.pull(REPO, tmp_path / "pulled")
    assert "\n" not in str(error.value)
    assert "cannot write" not in str(error.value)


def test_a_repository_without_its_owner_is_not_made(stand_in, pack):
    before = {repo: dict(files) for repo, files in stand_in.files.items()}
    with pytest.raises(UsageError, match="write owner/name"):
        hub.push(pack, "feelings")
    assert stand_in.files == before


def test_the_card_says_what_the_pack_is(stand_in, pack):
    hub.push(pack, REPO)
    card = stand_in.files[REPO]["README.md"].decode()
    front = card.split("---\n")[1]
    assert "base_model: somebody/model-4bit\n" in front
    assert "library_name: mlx-emotion\n" in front
    assert IDENTITY.fingerprint in card
    assert f"vectors pull {REPO}" in card
    for emotion in pack:
        assert f"| {emotion} | 7 | 1.5 |" in card


def test_a_card_that_is_there_is_left_alone(stand_in, pack):
    stand_in.files[REPO] = {"README.md": b"mine"}
    hub.push(pack, REPO)
    assert stand_in.files[REPO]["README.md"] == b"mine"


def test_only_packs_for_the_model_are_pulled(stand_in, pack, tmp_path):
    other = dataclasses.replace(IDENTITY, id="somebody/model-8bit", fingerprint="e" * 32)
    make_pack(model=other).save(tmp_path / "other.safetensors")
    from safetensors.numpy import save

    stand_in.files[REPO] = {
        "a/model.safetensors": pack.path.read_bytes(),
        "other.safetensors": (tmp_path / "other.safetensors").read_bytes(),
        "weights.safetensors": save({"w": np.zeros(4, np.float32)}),
        "notes.txt": b"hello",
    }
    (path,) = hub.pull(REPO, tmp_path / "one", IDENTITY)
    assert path.name == "somebody--feelings--a--model.safetensors"
    assert len(hub.pull(REPO, tmp_path / "both")) == 2
    with pytest.raises(PackError, match=r"no pack for x/y \(d+\), only for somebody/model-4bit"):
        hub.pull(REPO, tmp_path / "none", dataclasses.replace(IDENTITY, id="x/y", fingerprint="d" * 32))
    assert not (tmp_path / "none").exists()


def test_a_repository_without_packs(stand_in, tmp_path):
    stand_in.files[REPO] = {"README.md": b"hello"}
    with pytest.raises(PackError, match="holds no pack"):
        hub.pull(REPO, tmp_path)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (401, r"refused \(401\).*hf auth login"),
        (403, r"refused \(403\)"),
        (404, r"no such repository \(404\)"),
        (500, r"failed \(500\); try again later"),
        (503, r"failed \(503\)"),
    ],
)
def test_answers_that_are_no_help(fault, told, stand_in, pack, tmp_path):
    stand_in.files[REPO] = {"pack.safetensors": pack.path.read_bytes()}
    stand_in.fault = fault
    for attempt in (lambda: hub.pull(REPO, tmp_path / "pulled"), lambda: hub.push(pack, REPO)):
        with pytest.raises(PackError, match=told) as error:
            attempt()
        assert REPO in str(error.value)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "pulled").exists()


def test_pushing_without_a_token(stand_in, pack, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PackError, match=r"refused \(401\)"):
        hub.push(pack, REPO)


@pytest.mark.parametrize("fault", ["half", "short"])
def test_half_a_file_leaves_nothing_behind(fault, stand_in, pack, tmp_path):
    stand_in.files[REPO] = {"pack.safetensors": pack.path.read_bytes()}
    stand_in.fault = fault
    with pytest.raises(PackError, match=r"try again") as error:
        hub.pull(REPO, tmp_path / "pulled")
    assert REPO in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "pulled").iterdir())


def test_half_a_file_leaves_the_earlier_one(stand_in, pack, tmp_path):
    stand_in.files[REPO] = {"pack.safetensors": pack.path.read_bytes()}
    (path,) = hub.pull(REPO, tmp_path / "pulled")
    stand_in.fault = "half"
    with pytest.raises(PackError):
        hub.pull(REPO, tmp_path / "pulled")
    assert path.read_bytes() == pack.path.read_bytes()
    assert list((tmp_path / "pulled").iterdir()) == [path]


def test_a_pack_that_is_broken_on_the_hub(stand_in, pack, tmp_path):
    whole = pack.path.read_bytes()
    for content in (whole[:200], whole[:-8], (2**40).to_bytes(8, "little") + whole[8:], whole[:8] + b"x" + whole[9:]):
        stand_in.files[REPO] = {"pack.safetensors": content}
        with pytest.raises(PackError, match=REPO) as error:
            hub.pull(REPO, tmp_path / "pulled")
        assert "\n" not in str(error.value)
        assert ".tmp" not in str(error.value)
    assert not list((tmp_path / "pulled").glob("*"))


def test_a_hostile_name_stays_in_the_folder(stand_in, pack, tmp_path, monkeypatch):
    """Also where the hub hands the file out, which the client's own tidying of paths keeps the stand-in from."""
    stand_in.files[REPO] = {"../../evil.safetensors": pack.path.read_bytes()}
    monkeypatch.setattr(hub, "_remote_info", lambda *_: pack.info)
    monkeypatch.setattr(hub, "_download", lambda *_: None)
    (path,) = hub.pull(REPO, tmp_path / "in" / "pulled")
    assert path.parent == tmp_path / "in" / "pulled"


def test_a_pack_that_was_calibrated_here_is_not_replaced(stand_in, pack, tmp_path):
    stand_in.files[REPO] = {"pack.safetensors": pack.path.read_bytes()}
    (path,) = hub.pull(REPO, tmp_path)
    assert hub.pull(REPO, tmp_path) == [path]  # the same again
    mine = EmotionVectors.load(path)
    mine.info.base_scale = 2.5
    mine.save(path)
    with pytest.raises(UsageError, match="was changed here"):
        hub.pull(REPO, tmp_path)
    assert EmotionVectors.load(path).info.base_scale == 2.5


def test_what_is_not_a_repository(stand_in, tmp_path):
    with pytest.raises(UsageError, match="owner/name"):
        hub.pull("one/two/three", tmp_path)
    assert not stand_in.requests


def test_no_hub_at_all(stand_in, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MLXEmotionError, match=r"Connect.*try again"):
        hub.pull(REPO, tmp_path)


def test_offline_says_so(stand_in, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PackError, match="HF_HUB_OFFLINE is set"):
        hub.pull(REPO, tmp_path)


def test_the_commands_through_the_environment(stand_in, pack, home):
    """``vectors push`` and ``pull`` in processes of their own, where HF_ENDPOINT alone shows the way."""
    environment = {**os.environ, "HF_ENDPOINT": stand_in.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    environment["HF_HUB_DISABLE_XET"] = "1"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mlx_emotion", "vectors", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)

    pushed = run("push", pack.path, REPO)
    assert pushed.returncode == 0, pushed.stderr
    pulled = run("pull", REPO)
    assert pulled.returncode == 0, pulled.stderr
    path = home / "data" / "packs" / "somebody--feelings--model-attention.safetensors"
    assert pulled.stdout.strip() == str(path)
    assert path.read_bytes() == pack.path.read_bytes()
    stand_in.fault = 404
    missing = run("pull", REPO)
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "no such repository" in missing.stderr
    if importlib.util.find_spec("hf_xet") is None:
        return
    stand_in.fault, environment["HF_HUB_DISABLE_XET"] = None, "0"
    stand_in.objects.clear()
    refused = run("push", pack.path, REPO)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "set HF_HUB_DISABLE_XET=1 and try again" in refused.stderr
