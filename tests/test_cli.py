"""The command line: what goes where, exit statuses, and one clear line for whatever is wrong."""

import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import mlx_emotion
from mlx_emotion import Store, calibration
from mlx_emotion.cli import COMMANDS, main
from mlx_emotion.cli.options import one_line
from mlx_emotion.files import config_file
from mlx_emotion.vectors import EmotionVectors, PackInfo


@pytest.fixture(scope="module")
def pack(tiny_model_path, tmp_path_factory):
    """A random calibrated pack of the tiny model."""
    identity = mlx_emotion.load(str(tiny_model_path)).identity
    rng = np.random.default_rng(1)
    vectors = {n: rng.standard_normal((identity.layers, identity.width)) * 0.2 for n in ("fear", "joy")}
    entries = {n: {"instructions": ["x"], "count": 2, "scale": 1.5} for n in vectors}
    info = PackInfo(identity, "attention", entries, base_scale=1.0)
    return EmotionVectors(vectors, info).save(tmp_path_factory.mktemp("packs") / "tiny.safetensors")


@pytest.fixture
def run(tiny_model_path, pack, capsys):
    """Run a command in this process on the tiny model; gives (status, stdout, stderr)."""

    def go(*arguments, model=True):
        extra = ["--model", str(tiny_model_path), "--vectors", str(pack)] if model else []
        status = main([*map(str, arguments), *extra])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return go


def test_help_imports_nothing_heavy():
    probe = (
        "import sys; from mlx_emotion.cli import main; main(['--help']); "
        "sys.exit(any(m in sys.modules for m in ('mlx_lm', 'transformers', 'textual', 'mlx.core', 'numpy', 'rich')))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "chat" in done.stdout


def test_importing_the_library_imports_nothing_heavy():
    probe = "import sys, mlx_emotion; sys.exit(any(m in sys.modules for m in ('mlx_lm', 'mlx.core', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["vectors"], ["queries"]])
def test_without_a_command_there_is_help(arguments, capsys):
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Usage: mlx-emotion")
    assert captured.err == ""


def test_the_sites_are_the_library_s():
    from mlx_emotion.cli.options import SITES
    from mlx_emotion.steering import SITES as tapped
    from mlx_emotion.vectors.pack import SITES as packed

    assert SITES == tapped == packed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    assert "Usage: mlx-emotion" in capsys.readouterr().out


def test_generate_prints_the_answer_alone(run):
    status, out, err = run("generate", "hello", "--emotion", "fear", "--max-tokens", "8", "--seed", "1")
    assert status == 0
    assert err == ""
    _, data, _ = run("generate", "hello", "--emotion", "fear", "--max-tokens", "8", "--seed", "1", "--json")
    assert json.loads(data)["text"]
    assert out == json.loads(data)["text"] + "\n"


def test_generate_json_has_the_contract_s_fields(run, pack):
    status, out, _ = run("generate", "hello", "--emotion", "fear:0.5", "--max-tokens", "8", "--seed", "7", "--json")
    data = json.loads(out)
    assert status == 0
    wanted = {"text", "feeling", "scale", "model", "pack", "seed", "finish_reason", "guard", "prompt_tokens", "tokens"}
    assert wanted | {"tokens_per_second", "time_to_first_token"} <= set(data)
    assert data["scale"] == {"fear": 0.75}
    assert data["seed"] == 7
    assert data["pack"] == str(pack)
    again = json.loads(run("generate", "hello", "-e", "fear:0.5", "--max-tokens", "8", "--seed", "7", "--json")[1])
    assert again["text"] == data["text"]


WRONG = [
    (["generate", "hi", "--emotion", "feer"], 2, "did you mean 'fear'"),
    (["generate", "hi", "--emotion", "fear:2"], 2, "intensity of fear is 2, wanted 0 to 1.5"),
    (["generate", "hi", "--emotion", "fear;joy"], 2, "unknown emotion|cannot read"),
    (["generate", "hi", "--scale", "2"], 2, "--scale says how strong, not what"),
    (["generate", "hi", "--scale", "2", "-e", "fear:0"], 2, "--scale says how strong, not what"),
    (["generate", "hi", "--temp", "-1"], 2, "temperature is -1"),
    (["generate", "hi", "--temp", "warm"], 2, "not a valid float"),
    (["generate", "hi", "--max-tokens", "0"], 2, "max-tokens is 0"),
    (["generate", "hi", "--seed", "-3"], 2, "seed is -3"),
    (["generate", "  "], 2, "the prompt is empty"),
    (["generate"], 2, "Missing argument"),
    (["generate", "hi", "--positions", "odd"], 2, "odd"),
    (["extrakt"], 2, "did you mean 'extract'"),
    (["generate", "hi", "--model", "/nowhere/model"], 1, "no model folder '/nowhere/model'"),
    (["generate", "hi", "--model", "some/model-not-cached"], 1, "not cached on this machine and HF_HUB_OFFLINE"),
    (["generate", "hi", "--vectors", "/nowhere.safetensors"], 1, "no such pack"),
    (["extract", "--emotions", "feer"], 2, "did you mean 'fear'"),
    (["extract", "--emotions", ""], 2, "emotion"),
    (["history", "--json", "export", "x"], 2, "--json is for the list, not for export"),
    (["history", "--deleted", "undelete", "x"], 2, "--deleted is for the list, not for undelete"),
    (["extract", "--limit", "0"], 2, "limit is 0"),
    (["extract", "--queries", "/nowhere.json"], 1, "No such file"),
    (["vectors", "show", "nothing"], 1, "no such pack"),
    (["calibrate", "nothing"], 1, "no such pack"),
    (["calibrate", "--share", "0"], 2, "0.0 is not in the range"),
    (["calibrate", "--share", "nan"], 2, "nan is not in the range"),
]


@pytest.mark.parametrize(("arguments", "status", "says"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_wrong_input_is_one_line_and_the_right_status(arguments, status, says, capsys):
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(says, captured.err), captured.err
    assert captured.err.startswith("mlx-emotion: ")
    assert len(captured.err.strip().splitlines()) == 1


def test_broken_model_folders(tmp_path, tiny_model_path, capsys):
    import shutil

    def broken(change):
        folder = tmp_path / "m"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_model_path, folder)
        change(folder)
        assert main(["generate", "hi", "--model", str(folder)]) == 1
        err = capsys.readouterr().err.strip()
        assert len(err.splitlines()) == 1
        return err

    def cut(folder):
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])

    def config(**changes):
        def change(folder):
            data = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(data | changes))

        return change

    assert "no config.json" in broken(lambda f: (f / "config.json").unlink())
    assert "no model*.safetensors" in broken(lambda f: (f / "model.safetensors").unlink())
    assert "cannot load" in broken(cut)
    assert "config.json: not JSON" in broken(lambda f: (f / "config.json").write_text("{"))
    assert "not supported" in broken(config(model_type="no_such_type"))
    assert "remote" in broken(config(model_file="evil.py")) or "custom module" in broken(config(model_file="evil.py"))
    assert "cannot load" in broken(config(num_hidden_layers=5))


def test_a_pack_of_another_model_is_refused(pack, tmp_path, capsys):
    from tests.conftest import make_llama

    other = make_llama(tmp_path / "other", seed=1)
    assert main(["generate", "hi", "--model", str(other), "--vectors", str(pack)]) == 1
    assert "fingerprint" in capsys.readouterr().err
    eight = make_llama(tmp_path / "eight", bits=8)
    assert main(["generate", "hi", "--model", str(eight), "--vectors", str(pack), "--max-tokens", "3"]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["generate", "hi", "--model", str(eight), "--vectors", str(pack), "--max-tokens", "3", "--force"]) == 0


@pytest.fixture
def chat(tiny_model_path, pack, capsys, monkeypatch):
    """Chat with lines from standard input; gives (status, stdout, stderr)."""

    def go(lines, *arguments):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        status = main(["chat", "--model", str(tiny_model_path), "--vectors", str(pack), *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return go


def test_chat_answers_each_line_and_exits(chat):
    lines = "hello\n\n/feel joy\n/intensity 50%\nand you\n/again fear:0.2\n/neutral\n/reset\n/help\n/quit\n/dance\n"
    status, out, err = chat(lines, "--emotion", "fear", "--max-tokens", "5")
    assert status == 0  # 2 had it gone on
    assert out.count("\n") >= 3
    assert "feeling joy:0.5" in err
    assert "feeling neutral" in err
    assert "/save" in err


def test_chat_with_a_wrong_command_says_so_and_fails(chat):
    status, out, err = chat("/dance\n")
    assert (status, out) == (2, "")
    assert err.strip().splitlines() == ["mlx-emotion: no command /dance; /help lists them"]


def test_save_writes_the_conversation(chat, tmp_path):
    path = tmp_path / "talk.json"
    assert chat(f"hello\n/save {path}\n", "--max-tokens", "5")[0] == 0
    saved = json.loads(path.read_text())
    (exchange,) = saved["exchanges"]
    assert (exchange["user"], len(exchange["replies"])) == ("hello", 1)
    store = Store()
    (back,) = store.exchanges(store.import_file(path))
    store.close()
    assert back.reply.text == exchange["replies"][0]["text"]
    status, _, err = chat(f"/save {path}\n")
    assert (status, err) == (2, f"mlx-emotion: {path} is there already; give another name\n")
    assert json.loads(path.read_text()) == saved


def test_a_message_that_is_refused_is_no_part_of_the_conversation(chat, tmp_path):
    path = tmp_path / "talk.json"
    status, _, err = chat(f"hello\ncaf\udce9\n/again\n/save {path}\n", "--max-tokens", "5")
    assert status == 2
    assert "the message is not valid UTF-8" in err
    (exchange,) = json.loads(path.read_text())["exchanges"]
    assert (exchange["user"], len(exchange["replies"])) == ("hello", 2)


def test_again_with_a_seed_is_another_answer_and_the_same_every_time(chat):
    lines = "hello\n/again\n/again\nhello\n"
    first, second = (chat(lines, "--seed", "7", "--max-tokens", "12", "--temp", "2")[1] for _ in range(2))
    assert first == second
    answers = first.split("\n")
    assert len(set(answers[:3])) == 3


def test_what_is_shown_keeps_its_characters_and_moves_nothing():
    kept = "10\u00a0km, \u3000 \u200d \u00ad\n\t"
    assert one_line(kept) == kept
    assert one_line("a\x1b[31mb\rc\u202ed") == "a[31mbcd"


def test_a_closed_pipe_is_no_error(tiny_model_path):
    call = f'"{sys.executable}" -m mlx_emotion generate hello --model "{tiny_model_path}" --max-tokens 400'
    done = subprocess.run(
        ["bash", "-c", f"{call} | head -c 1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        errors="replace",  # a character may be longer than that
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(
    ("call", "status", "told"),
    [
        ("chat --plain <&-", 0, ""),
        ("generate - <&-", 2, "mlx-emotion: the prompt is empty\n"),
        ("paths >&-", 0, ""),
        ("vectors export embedded-attention", 2, "mlx-emotion: Missing option '--format'. Choose from: gguf, json"),
        (
            "evaluate -o pyproject.toml",
            2,
            "mlx-emotion: pyproject.toml is a file; --output is the folder for the results",
        ),
    ],
)
def test_closed_streams_and_wrong_options_end_in_a_line(call, status, told):
    done = subprocess.run(["bash", "-c", f'"{sys.executable}" -m mlx_emotion {call}'], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == bool(told)


def test_a_wrong_feeling_or_pack_is_told_before_the_app_opens(monkeypatch, capsys):
    monkeypatch.setattr("mlx_emotion.tui.run", lambda *_, **__: pytest.fail("the app was opened"))
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{name}.isatty", lambda: True, raising=False)
    for given, status, told in (
        (["-e", "hapiness"], 2, "unknown emotion 'hapiness': known are anger"),
        (["-e", "fear:9"], 2, "intensity of fear is 9"),
        (["--vectors", "nopack"], 1, "nopack: no such pack"),
    ):
        assert main(["chat", *given]) == status
        assert told in capsys.readouterr().err


def test_a_home_of_nobody_and_a_number_without_end(chat, home, tmp_path, capsys):
    status, out, err = chat("hello\n/save ~nosuchuser/x/y.json\nhello\n", "--max-tokens", "3", "--seed", "1")
    assert (status, out.count("\n")) == (2, 2)
    assert err == "mlx-emotion: ~nosuchuser/x/y.json: there is no such user here\n"
    assert main(["generate", "hello", "--model", "~nosuchuser/m"]) == 2
    assert "~nosuchuser/m: there is no such user here" in capsys.readouterr().err
    (tmp_path / "big.toml").write_text(f"a = {'1' * 5000}")
    assert main(["extract", "--define", str(tmp_path / "big.toml")]) in (1, 2)
    assert "not TOML" in capsys.readouterr().err


def test_a_default_model_that_is_no_name(home, capsys):
    config_file().parent.mkdir(parents=True)
    config_file().write_text("model = 5")
    assert main(["generate", "hello"]) == 2
    assert "config.toml: model is 5, wanted a folder" in capsys.readouterr().err


def test_text_from_elsewhere_moves_no_cursor_and_is_no_markup(tmp_path, capsys):
    from mlx_emotion.cli.options import cell

    path = tmp_path / "evil.safetensors"
    header = {"__metadata__": {"mlx_emotion": json.dumps({"schema": 1, "\x1b]0;owned\x07[/b]": 1})}}
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    assert main(["vectors", "check", str(path)]) == 1
    err = capsys.readouterr().err
    assert "unknown fields ]0;owned[/b]" in err
    assert "\x1b" not in err
    assert cell("[/b]\x1b[2J\n").plain == "[/b][2J⏎"


def test_interrupted_generation_ends_with_130(tmp_path):
    import signal

    from tests.tui.terminal import endless

    # A random model may end its reply before it is interrupted; and a job in the background is born deaf to Ctrl-C.
    call = [sys.executable, "-m", "mlx_emotion", "generate", "hello", *endless(tmp_path / "endless"), "--no-guard"]
    process = subprocess.Popen(
        [*call, "--max-tokens", "6000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_a_place_for_the_pack_that_cannot_be_is_told_first(tiny_model_path, tmp_path, capsys):
    (tmp_path / "file").touch()
    for place, told in ((tmp_path, "it is a folder"), (tmp_path / "file" / "p.safetensors", "")):
        assert main(["extract", "--model", str(tiny_model_path), "--output", str(place)]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"mlx-emotion: cannot write {place}: {told}")
        assert len(err.splitlines()) == 1


def test_a_pack_is_checked_against_what_is_on_the_machine(pack, capsys):
    assert main(["vectors", "check", str(pack), "--adapter", "somewhere"]) == 2
    assert "give --model too" in capsys.readouterr().err
    assert main(["vectors", "check", str(pack), "--model", "some/model-not-cached"]) == 1
    assert "some/model-not-cached is not cached on this machine, and nothing is downloaded" in capsys.readouterr().err


def test_extract_calibrate_list_show_check(tiny_model_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(calibration, "PROMPTS", 4)
    monkeypatch.setattr(calibration, "MAX_TOKENS", 16)
    monkeypatch.setattr(calibration, "STEPS", 1)
    queries = tmp_path / "q.json"
    queries.write_text(json.dumps({"fear": ["who is there", "what was that"], "joy": ["we won", "look here"]}))
    model = ["--model", str(tiny_model_path)]
    assert main(["extract", *model, "--queries", str(queries), "--max-tokens", "8"]) == 0
    path = capsys.readouterr().out.strip()
    pack = EmotionVectors.load(path)
    assert pack.calibrated
    assert pack.info.base_scale is not None
    assert main(["extract", *model, "--queries", str(queries), "--emotions", "fear"]) == 2
    assert "also has joy, which would be lost" in capsys.readouterr().err
    assert main(["calibrate", path, *model, "--share", "0.5"]) == 0
    gentler = EmotionVectors.load(path).info
    assert gentler.calibration["share"] == 0.5
    assert gentler.base_scale == pytest.approx(pack.info.base_scale / 2, rel=1e-3)
    for name, emotion in gentler.emotions.items():
        assert emotion["scale"] == pytest.approx(pack.info.emotions[name]["scale"] / 2, rel=1e-3)
    capsys.readouterr()
    assert main(["vectors", "list"]) == 0
    assert "tiny-attention" in capsys.readouterr().out
    assert main(["vectors", "show", "tiny-attention"]) == 0
    assert "fear" in capsys.readouterr().out
    assert main(["vectors", "check", "tiny-attention", *model]) == 0
    capsys.readouterr()
    assert main(["vectors", "check", "tiny-attention", "--model", "embedded"]) == 1
    assert "is not for embedded" in capsys.readouterr().err
    assert main(["generate", "hi", *model, "--emotion", "joy", "--max-tokens", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pack"] == path


def test_paths_follow_the_home(home, capsys):
    assert main(["paths"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) >= 4
    assert all(str(home) in line for line in lines)


def test_of_the_cache_only_whole_chat_models_are_offered(tiny_model_path, tmp_path):
    def cached(name, **config):
        folder = tmp_path / f"models--me--{name}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("abc")
        shutil.copytree(tiny_model_path, folder / "snapshots" / "abc")
        known = json.loads((tiny_model_path / "config.json").read_text())
        (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(known | config))
        return folder / "snapshots" / "abc"

    cached("whole")
    cached("reader", model_type="bert")
    (cached("odd") / "model.safetensors.index.json").write_text('{"weight_map": {"a": "/x", "b": ""}}')
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (cached("half") / "model.safetensors.index.json").write_text(json.dumps(index))
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path)}

    def run(*arguments):
        command = [sys.executable, "-m", "mlx_emotion", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    shown = run("models", "--json")
    assert [m["model"] for m in json.loads(shown.stdout)] == ["embedded", "me/odd", "me/whole"]
    assert "me/half: 1 of its weight files are not here (model-00001-of-00002.safetensors)" in shown.stderr
    assert "me/reader: mlx-lm has no chat model of the kind bert" in shown.stderr
    # Not a look at the hub, for a model that is whole.
    environment |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    answered = run("generate", "hi", "--model", "me/whole", "--max-tokens", "3", "--json")
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["model"] == "me/whole"
    environment["HF_HUB_OFFLINE"] = "1"
    refused = run("generate", "hi", "--model", "me/half")
    assert refused.returncode == 1
    assert "me/half is only partly cached on this machine and HF_HUB_OFFLINE is set" in refused.stderr


def test_models_lists_the_embedded_one(capsys):
    assert main(["models", "--json"]) == 0
    (found,) = [m for m in json.loads(capsys.readouterr().out) if m["model"] == "embedded"]
    assert found["quantization"] == "6-bit"


def test_models_lists_a_folder_that_is_the_default(home, tiny_model_path, capsys):
    (home / "config").mkdir(parents=True)
    (home / "config" / "config.toml").write_text(f"model = '{tiny_model_path}'")
    assert main(["models", "--json"]) == 0
    (default,) = [m["model"] for m in json.loads(capsys.readouterr().out) if m["default"]]
    assert default == str(tiny_model_path)


def test_doctor_is_content(capsys):
    assert main(["doctor"]) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_a_config_that_is_not_toml(home, capsys):
    (home / "config").mkdir(parents=True)
    (home / "config" / "config.toml").write_text("model = ")
    assert main(["generate", "hi"]) == 2
    assert "config.toml" in capsys.readouterr().err
