"""Making a pack: where it goes, what it must not take away, and what an interruption leaves."""

import dataclasses
import shutil

import pytest

import mlx_emotion
from mlx_emotion import calibration
from mlx_emotion.calibration import Calibration
from mlx_emotion.errors import Interrupted, ModelError, UsageError
from mlx_emotion.extraction import Plan
from mlx_emotion.files import extraction_folder
from mlx_emotion.library import available, lost_by, make_pack, pack_path
from mlx_emotion.model import find_packs
from mlx_emotion.vectors import EmotionVectors

QUERIES = {"fear": ["who is there", "what was that"], "joy": ["we won", "a gift"]}


@pytest.fixture
def model(tiny_model_path, home, monkeypatch):
    monkeypatch.setattr(calibration, "PROMPTS", 2)
    monkeypatch.setattr(calibration, "MAX_TOKENS", 4)
    monkeypatch.setattr(calibration, "STEPS", 1)
    return mlx_emotion.load(str(tiny_model_path))


def plan(limit=None, **more):
    return Plan.make(queries=QUERIES, limit=limit, max_tokens=4, **more)


def test_a_pack_that_has_more_is_not_replaced_unasked(model):
    make_pack(model, plan=plan(), calibrate=False)
    path = pack_path(model)
    before = path.read_bytes()
    assert "2 for fear" in lost_by(model, plan(1))
    with pytest.raises(UsageError, match="was made with more queries"):
        make_pack(model, plan=plan(1), calibrate=False)
    with pytest.raises(UsageError, match="also has joy"):
        make_pack(model, plan=plan(emotions=["fear"]), calibrate=False)
    assert path.read_bytes() == before
    make_pack(model, plan=plan(1), calibrate=False, replace=True)
    assert EmotionVectors.load(path).info.emotions["fear"]["count"] == 1


def test_a_pack_of_another_model_with_the_same_name_stays(model):
    make_pack(model, plan=plan(), calibrate=False)
    path = pack_path(model)
    pack = EmotionVectors.load(path)
    pack.info = dataclasses.replace(pack.info, model=dataclasses.replace(model.identity, fingerprint="e" * 32))
    pack.save(path)
    beside = pack_path(model)
    assert beside != path
    assert beside.parent == path.parent
    assert make_pack(model, plan=plan(), calibrate=False).path == beside
    assert EmotionVectors.load(path).info.model.fingerprint == "e" * 32
    assert pack_path(model) == beside


def test_a_new_pack_takes_the_place_of_the_one_beside(model):
    make_pack(model, plan=plan(), calibrate=False)
    path = pack_path(model)
    beside = path.with_stem(f"{path.stem}-{model.identity.fingerprint[:8]}")
    path.rename(beside)  # the other model's pack, for which it had made room, was deleted since
    assert pack_path(model) == beside
    assert make_pack(model, plan=plan(), calibrate=False).path == beside == find_packs(model.identity)[0]


def test_a_pack_of_all_layers_is_not_replaced_by_one_of_some(model, tiny_model_path):
    make_pack(model, plan=plan(), calibrate=False)
    some = mlx_emotion.load(str(tiny_model_path), layers=[1])
    with pytest.raises(UsageError, match=r"also has layers that this model was loaded without \(0\)"):
        make_pack(some, plan=plan(), calibrate=False)
    make_pack(some, plan=plan(), calibrate=False, replace=True)
    assert not EmotionVectors.load(pack_path(some))["fear"][0].any()
    assert lost_by(mlx_emotion.load(str(tiny_model_path), layers=[1]), plan()) == ""
    assert "(1)" in lost_by(mlx_emotion.load(str(tiny_model_path), layers=[0]), plan())


def test_a_pack_that_another_program_has_written_meanwhile_stays(model):
    path = pack_path(model)

    def progress(step):
        if step.stage == "extracting" and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"of another program")

    made = make_pack(model, plan=plan(), progress=progress)
    assert path.read_bytes() == b"of another program"
    assert made.path == path.with_stem(f"{path.stem}-2")
    assert EmotionVectors.load(made.path).calibrated


def test_a_model_that_loads_but_does_not_run(tiny_model_path, monkeypatch):
    def forward(*_):
        raise ValueError("[matmul] shapes\nand where")

    monkeypatch.setattr("mlx_emotion.steering.Taps.self_test", forward)
    with pytest.raises(ModelError, match=r"loads, but does not run: \[matmul\] shapes$"):
        mlx_emotion.load(str(tiny_model_path))


def test_stopped_while_calibrating_the_scales_before_it_stay_and_what_was_found_is_taken_up(model, monkeypatch):
    pack = make_pack(model, plan=plan())
    scales = {name: pack.scale(name) for name in pack}
    for name in pack:
        pack.info.emotions[name]["scale"] = 7.0
    pack.save(pack_path(model))

    stages = []
    with pytest.raises(Interrupted, match="goes on from here"):
        make_pack(model, plan=plan(), progress=stages.append, stopped=lambda: bool(stages) and stages[-1].note == "joy")
    assert [s.note for s in stages if s.stage == "calibrating"] == ["fear", "joy"]
    held = EmotionVectors.load(pack_path(model))
    assert {name: held.scale(name) for name in held} == dict.fromkeys(held, 7.0)

    measured = []
    original = Calibration.scale
    monkeypatch.setattr(Calibration, "scale", lambda self, name: measured.append(name) or original(self, name))
    done = make_pack(model, plan=plan())
    assert measured == ["joy", "base"]
    assert {name: done.scale(name) for name in done} == scales
    assert not list(extraction_folder().glob("calibration-*"))


def test_the_only_pack_says_which_site(model, tiny_model_path, tmp_path):
    residual = mlx_emotion.load(str(tiny_model_path), site="residual")
    made = make_pack(residual, plan=plan(), calibrate=False)
    assert mlx_emotion.load(str(tiny_model_path)).site == "residual"
    shutil.move(made.path, tmp_path / "away.safetensors")
    assert mlx_emotion.load(str(tiny_model_path)).site == "attention"


def test_what_was_extracted_last_comes_before_copies_of_other_names(model):
    made = make_pack(model, plan=plan(), calibrate=False)
    path = pack_path(model)
    shutil.copy(path, path.with_name(f"{path.stem}-old.safetensors"))
    shutil.copy(path, path.with_name("a.safetensors"))
    assert find_packs(model.identity)[0] == path == made.path


def test_a_cached_model_is_known_by_its_name(tiny_model_path, monkeypatch):
    monkeypatch.setattr("mlx_emotion.models.local_models", lambda: [("me/tiny", tiny_model_path, 1)])
    (found,) = available()
    assert found.identity.id == "me/tiny"
    assert found.identity.revision == tiny_model_path.name  # the cache's folders are called after the commit
