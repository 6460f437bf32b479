"""The embedded model's trainer: its own pass is the architecture's, growing changes nothing, rounding is mlx's."""

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.9")
pytest.importorskip("transformers")
SCRIPT = Path(__file__).parent.parent / "scripts" / "train_embedded_model.py"
sys.path.insert(0, str(SCRIPT.parent))

import train_embedded_model as trainer  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

EMOTIONS = len(trainer.EMOTIONS)


def tiny(width=128, feed=192, layers=2):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=feed,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        vocab_size=96,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def ids():
    return torch.randint(0, 96, (3, 17), generator=torch.Generator().manual_seed(1))


def run(model, ids, asked=None, pushes=None, vectors=None, places=None, branch=None):
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    asked = torch.full(ids.shape, -1) if asked is None else asked
    members = torch.nn.functional.one_hot(asked + 1, EMOTIONS + 2)[..., 1:].float()
    pushes = torch.zeros(2, *ids.shape, EMOTIONS) if pushes is None else pushes
    vectors = torch.zeros(2, EMOTIONS, layers, width) if vectors is None else vectors
    places = torch.arange(ids.shape[1]).expand(ids.shape) if places is None else places
    branch = torch.zeros_like(ids) if branch is None else branch
    return trainer.passed(model, ids, places, branch, members, pushes, vectors[:, None])


@torch.no_grad()
def test_its_pass_is_that_of_the_library(ids):
    model = tiny()
    last, middle, _ = run(model, ids)
    wanted = model.model(input_ids=ids, output_hidden_states=True)
    torch.testing.assert_close(last, wanted.last_hidden_state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(middle, wanted.hidden_states[1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_push_adds_the_vector_at_its_site(ids):
    model = tiny()
    vectors = torch.randn(2, EMOTIONS, 2, 128)
    pushes = torch.zeros(2, *ids.shape, EMOTIONS)
    pushes[1, :, 5:, 2] = 0.7
    plain, pushed = run(model, ids)[1], run(model, ids, pushes=pushes, vectors=vectors)[1]
    torch.testing.assert_close(pushed[:, :5], plain[:, :5])
    torch.testing.assert_close(pushed[:, 5:], plain[:, 5:] + 0.7 * vectors[1, 2, 0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sums_are_of_what_was_put_out_before_the_push(ids):
    model = tiny()
    asked = torch.full(ids.shape, -1)
    asked[0, 3:9], asked[2, 4:6] = 0, 3
    outputs = []
    hook = model.model.layers[0].self_attn.register_forward_hook(lambda *found: outputs.append(found[2][0]))
    model.model(input_ids=ids)
    hook.remove()
    vectors = torch.randn(2, EMOTIONS, 2, 128)
    sums = run(model, ids, asked, torch.ones(2, *ids.shape, EMOTIONS), vectors)[2]
    torch.testing.assert_close(sums[0, 0, 0, 0], outputs[0][0, 3:9].sum(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums[0, 2, 3, 0], outputs[0][2, 4:6].sum(0), rtol=1e-4, atol=1e-4)
    assert not sums[:, 1].any()


@torch.no_grad()
def test_a_grown_model_says_the_same_and_can_learn_more(ids):
    small, large = tiny(), tiny(256, 320, layers=3)
    trainer.grow(large, {k: v.detach().clone() for k, v in small.state_dict().items() if k != "lm_head.weight"})
    torch.testing.assert_close(large(input_ids=ids).logits, small(input_ids=ids).logits, rtol=1e-3, atol=1e-3)
    with torch.enable_grad():
        large(input_ids=ids, labels=ids).loss.backward()
    new = large.model.layers[0].mlp.down_proj.weight.grad[:128, 192:]
    assert new.abs().max() > 0


def test_the_penalty_is_for_what_the_vectors_share():
    config = tiny().config
    sums = torch.zeros(2, 1, EMOTIONS + 1, 2, 128)
    counts = torch.full((1, EMOTIONS + 1), 1000.0)
    apart, alike = trainer.Shifts(config, "cpu"), trainer.Shifts(config, "cpu")
    for n in range(EMOTIONS):
        sums[:, 0, n + 1, :, n] = 1000.0
    apart.add(sums, counts)
    alike.add(sums * 0.1 + torch.where(torch.arange(EMOTIONS + 1) > 0, 1000.0, 0.0)[:, None, None], counts)
    assert apart.common.max() < 0.2
    assert alike.common.min() > 0.9
    assert apart.penalty(sums, counts) == 0
    assert alike.penalty(sums, counts) > 0


def test_vectors_are_found_as_from_few_replies():
    shifts = trainer.Shifts(tiny().config, "cpu")
    shifts.counts += 1e6  # the means stay where they are
    shifts.sums[:, 1] += 1e6
    assert torch.equal(shifts.found(5), shifts.vectors[:, None])
    sums = torch.zeros(2, 4, EMOTIONS + 1, 2, 128)
    counts = torch.zeros(4, EMOTIONS + 1)
    counts[:, 2] = torch.tensor([20.0, 20.0, 20.0, 2.0])  # the last reply is too short to tell anything
    sums[:, :3, 2, :, :64] = 20 * torch.randn(2, 3, 2, 64)
    for _ in range(trainer.REPLIES):
        shifts.add(sums, counts)
    assert shifts.replies.shape == (trainer.REPLIES, 2, 2, 128)
    away = shifts.found(4000) - shifts.vectors[:, None]
    assert away[..., :64].mean().abs() < 0.01
    torch.testing.assert_close(away[..., :64].std(), torch.tensor(trainer.LEAK / 3**0.5), rtol=0.2, atol=0)
    assert away[..., 64:].abs().max() < 1e-3


@pytest.fixture(scope="module")
def encoder():
    topics = [t for t in trainer.load_corpus() if t.name in ("cat", "dog")]
    sizes = SimpleNamespace(vocabulary=400, seed=1, context=192)
    return trainer.Encoder(trainer.make_tokenizer(topics, sizes), topics, 192)


@torch.no_grad()
def test_answers_side_by_side_are_as_each_by_itself(encoder):
    before = [trainer.Turn("user", "A cat?"), trainer.Turn("assistant", "A cat."), trainer.Turn("user", "And now?")]
    answers = [
        trainer.Turn("assistant", "It sleeps.", topic="cat", asked="plain", lines=((0, "plain"),)),
        trainer.Turn("assistant", "I love it so!", topic="cat", push=(("joy", 0.8),), lines=((0, "joy"),)),
        trainer.Turn("assistant", "It is gone. I cry.", topic="dog", push=(("sadness", 1.2), ("fear", 0.5))),
    ]
    model = tiny()
    model.resize_token_embeddings(400)
    vectors = torch.randn(2, EMOTIONS, 2, 128)

    def states(row):
        pushes = torch.zeros(2, 1, len(row.ids), EMOTIONS)
        for start, stop, strengths in row.pushes:
            pushes[0, 0, start:stop] = torch.tensor(strengths)
        ids, asked, places, branch = (torch.tensor([x]) for x in (row.ids, row.asked, row.places, row.branch))
        return run(model, ids, asked, pushes, vectors, places, branch)[0][0]

    together = encoder([*before, *answers])
    all_states, at = states(together), 0
    for answer in answers:
        alone = encoder([*before, answer])
        shared = together.branch.index(1)
        if not at:
            torch.testing.assert_close(all_states[:shared], states(alone)[:shared])
        at, stop = at or shared, (at or shared) + len(alone.ids) - shared
        torch.testing.assert_close(all_states[at:stop], states(alone)[shared:], rtol=1e-4, atol=1e-4)
        for name in ("ids", "places", "weights", "about", "asked", "felt"):
            assert getattr(together, name)[at:stop] == getattr(alone, name)[shared:], name
        at = stop
    assert at == len(together.ids)


def test_answers_that_have_no_place_are_left_out(encoder):
    line = "It sleeps on the old chair by the door all day. "
    said = [trainer.Turn("assistant", line * n) for n in (1, 2, 9, 1)]
    row = encoder([trainer.Turn("user", "And the cat?"), *said])
    text = encoder.tokenizer.decode(row.ids)
    assert len(row.ids) <= trainer.LONGEST
    assert max(row.places) < 192
    assert text.count("assistant") == len({*row.branch}) - 1 == 2
    assert row.ids.count(encoder.end) == text.count("assistant") + 1


def test_each_line_of_a_reply_begins_with_weight_and_has_its_own_feeling(encoder):
    said, given, lines = (
        "Hello.",
        "The cat is here.",
        ("I love the cat, what a lovely day it is.", "My cat is gone and I cry."),
    )
    at = len(given) + 1
    reply = " ".join((given, *lines))
    spots = ((at, "joy"), (at + len(lines[0]) + 1, "sadness"))
    row = encoder([trainer.Turn("user", said), trainer.Turn("assistant", reply, len(given), "cat", lines=spots)])
    whole = encoder([trainer.Turn("user", said), trainer.Turn("assistant", reply)])
    assert row.ids == whole.ids
    begun = {n for n in range(1, len(row.ids)) if row.weights[n] == 3 and row.weights[n - 1] < 3}
    assert len(begun) == 2
    joy, sadness = (trainer.EMOTIONS.index(e) for e in ("joy", "sadness"))
    first, second = sorted(begun)
    for n in range(first, second):
        assert (row.felt[n - 1][joy], row.felt[n - 1][sadness]) == (1, 0)
    for n in range(second, second + 5):
        assert (row.felt[n - 1][joy], row.felt[n - 1][sadness]) == (0, 1)
    assert encoder.tokenizer.decode(row.ids[second:]).startswith(" My cat is gone")


def test_rounded_weights_are_those_that_ship():
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    with trainer.Rounded(model, 4):
        rounded = model.model.layers[0].mlp.up_proj.weight.detach().clone().numpy()
    weight = mx.array(before["model.layers.0.mlp.up_proj.weight"].numpy())
    wanted = np.array(mx.dequantize(*mx.quantize(weight, 64, 4), 64, 4))
    np.testing.assert_allclose(rounded, wanted, atol=1e-5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.fixture
def build(tmp_path, monkeypatch):
    """The one command, on two topics and with a model that is trained in a moment, pushed from the first step."""
    sizes = "--topics cat dog --width 64 --layers 2 --feed 64 --vocabulary 400 --tokens 256 --checkpoint-every 4"
    monkeypatch.setattr(trainer, "ENOUGH", -1)

    def run(name, *more):
        places = ["--work", str(tmp_path / f"{name}-work"), "--output", str(tmp_path / name), "--no-packs"]
        monkeypatch.setattr(sys, "argv", ["train", *sizes.split(), "--steps", "12", *places, *more])
        trainer.main()

    return run


def test_an_interrupted_build_goes_on_and_ends_as_one_that_never_stopped(build, tmp_path, monkeypatch, capsys):
    timed = iter([False, False])  # the part that goes on takes the precision of the part before it
    monkeypatch.setattr(trainer, "bfloat16_is_faster", lambda device: next(timed))
    build("whole")
    with monkeypatch.context() as patch:
        calls = iter(range(10))

        def held_out(*found):
            if next(calls) == 2:
                raise KeyboardInterrupt
            return dict.fromkeys(("plain", "emotional"), 1.0)

        patch.setattr(trainer, "held_out_loss", held_out)
        with pytest.raises(SystemExit, match="130"):
            build("halves")
    assert "stopped; the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "halves").exists()
    build("halves")
    assert "going on from step 8" in capsys.readouterr().err
    log = [json.loads(line) for line in (tmp_path / "halves-work" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [4, 8, 12]
    whole, halves = (trainer.weights_of(tmp_path / name) for name in ("whole", "halves"))
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value)


def test_a_round_added_later_is_as_one_wanted_from_the_start(build, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "bfloat16_is_faster", lambda device: False)
    build("whole", "--steps", "8", "4")
    build("added", "--steps", "8")
    one = trainer.weights_of(tmp_path / "added")
    build("added", "--steps", "8", "4")
    assert "going on from step 8" in capsys.readouterr().err
    whole, added = (trainer.weights_of(tmp_path / name) for name in ("whole", "added"))
    for name, value in whole.items():
        torch.testing.assert_close(added[name], value)
    assert any((one[name] != value).any() for name, value in added.items())
    with pytest.raises(SystemExit, match=r"made with other settings \(steps\)"):
        build("added", "--steps", "12")


def test_each_round_begins_with_half_the_rate_and_noise():
    places = [trainer.Place.of(step, [200, 100]) for step in range(300)]
    assert [(p.number, p.step) for p in (places[199], places[200], places[299])] == [(0, 199), (1, 0), (1, 99)]
    peaks = [max(p.rate for p in places if p.number == n) for n in (0, 1)]
    assert peaks == [1, 0.5]
    assert places[200].rate < peaks[1] > places[299].rate
    assert places[299].rate < places[20].rate
    assert places[0].noise == 2 * places[200].noise > 0
    assert [p.late for p in places] == [False] * 180 + [True] * 20 + [False] * 90 + [True] * 10


def test_what_would_be_lost_is_refused_first(build, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(SystemExit, match="mine: there is something that this script did not make"):
        build("mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    for work in ("place", "place/work"):
        with pytest.raises(SystemExit, match="can't hold --work"):
            build("place", "--work", str(tmp_path / work))
    with pytest.raises(SystemExit, match="--topics needs two"):
        build("one", "--topics", "cat")
    with pytest.raises(SystemExit, match="--steps: a round has one step at least"):
        build("none", "--steps", "8", "0")


def test_a_disk_that_fills_up_ends_in_a_line_and_leaves_the_last_checkpoint(build, tmp_path, monkeypatch):
    work, save = tmp_path / "full-work", torch.save
    calls = iter(range(3))

    def full(saved, path):
        save(saved, path)
        if next(calls):
            raise RuntimeError("file write failed\nand where in the library")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(SystemExit, match=r"checkpoint.pt: is the disk full\? file write failed; .* is safe"):
            build("full")
    assert sorted(p.name for p in work.iterdir() if p.suffix) == ["checkpoint.pt", "log.jsonl"]
    assert torch.load(work / "checkpoint.pt", weights_only=True)["entries"][-1]["step"] == 4


def test_the_model_that_is_built_has_its_record_and_can_be_gone_on_from(build, tmp_path):
    build("first")
    record = json.loads((tmp_path / "first" / "training.json").read_text())
    assert record["topics"] == ["cat", "dog"]
    weights = trainer.weights_of(tmp_path / "first")
    trained = torch.load(tmp_path / "first-work" / "checkpoint.pt", weights_only=True)["model"]
    torch.testing.assert_close(weights["model.norm.weight"], trained["model.norm.weight"])
    assert "2 topic files" in (tmp_path / "first" / "README.md").read_text()
    build("second", "--start", str(tmp_path / "first"), "--feed", "128", "--rate", "1e-9")
    grown = trainer.weights_of(tmp_path / "second")["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(grown[:64], weights["model.layers.0.mlp.up_proj.weight"], rtol=0, atol=0.02)
    stages = json.loads((tmp_path / "second" / "training.json").read_text())["stages"]
    assert [stage["feed"] for stage in stages] == [64, 128]
    assert "| 0 million | 1e-09 | 2 × 64, 128 |" in (tmp_path / "second" / "README.md").read_text()


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(build, tmp_path):
    build("one")
    with pytest.raises(SystemExit, match=r"other settings \(rate, seed\); give the same, or --restart"):
        build("one", "--rate", "1e-3", "--seed", "2")
    build("one", "--rate", "1e-3", "--restart")
    assert json.loads((tmp_path / "one" / "training.json").read_text())["stages"][0]["rate"] == 1e-3


def test_a_part_of_the_corpus_does_not_replace_the_model_that_ships(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--topics", "cat"])
    with pytest.raises(SystemExit, match="name another folder for it with --output"):
        trainer.main()


def test_a_topic_that_is_not_there_is_named(build):
    with pytest.raises(SystemExit, match="no topic unicorn in the corpus"):
        build("none", "--topics", "cat", "unicorn")


@pytest.mark.parametrize("lacking", ["disk", "memory"])
def test_a_machine_that_is_too_small_is_told_first(tmp_path, monkeypatch, lacking):
    if lacking == "disk":
        monkeypatch.setattr(trainer.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    else:
        monkeypatch.setattr(trainer, "free_memory", lambda: 1 << 24)
    monkeypatch.setattr(sys, "argv", ["train", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"MiB of {lacking} free"):
        trainer.main()
