"""Judges: the real pipeline code on tiny checkpoints, and an endpoint that misbehaves."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlx_emotion.engine import shared
from mlx_emotion.errors import EvaluationError, UsageError
from mlx_emotion.evaluation import judges
from mlx_emotion.evaluation.judges import Item
from mlx_emotion.evaluation.metrics import EAS_EMOTIONS

ITEMS = [Item("Who is there?", "I am terrified!"), Item("Which bus?", "Bus nine, at ten."), Item("What now?", "  ")]
SCORES = json.dumps(dict.fromkeys(EAS_EMOTIONS, 10))


# Built in.


def test_the_built_in_judges():
    found = {kind: judges.builtin(kind).judge(ITEMS[:2]) for kind in judges.KINDS}
    assert found["topic"] == [1, 1]  # "Who is there?" has no topic word
    assert found["emotional"] == ["emotional", "neutral"]
    assert found["top"] == ["fear", "neutral"]
    assert found["scores"][0]["fear"] > 0 == found["scores"][0]["joy"]
    assert found["emotions"][1]["neutral"] == 1


def test_an_empty_answer_is_judged_by_nobody():
    for kind in judges.KINDS:
        assert [v is None for v in judges.verdicts(judges.builtin(kind), ITEMS)] == [False, False, True]
    assert judges.verdicts(judges.builtin("topic"), ITEMS[2:]) == [None]


@pytest.mark.parametrize("error", [RuntimeError("no memory\nleft"), MemoryError(), KeyError("a"), OSError("gone")])
def test_a_judge_that_fails_is_one_line(error):
    def fail():
        raise error

    with pytest.raises(EvaluationError, match=r"judge J failed: .*the answers are kept") as found:
        judges.guarded("J", fail)
    assert "\n" not in str(found.value)


# Classifiers.


def test_zero_shot_equals_the_pipeline(bart_path):
    from transformers import pipeline

    texts = [i.answer for i in ITEMS[:2]]
    labels = ["emotionless", "neutral", "emotional"]
    reference = pipeline("zero-shot-classification", model=str(bart_path), device="cpu")
    single = judges.classifier(str(bart_path), "emotional", labels).judge(ITEMS)
    assert single == [*(r["labels"][0] for r in reference(texts, labels, batch_size=16)), None]
    multi = judges.classifier(str(bart_path), "emotions", labels).judge(ITEMS)
    for verdict, wanted in zip(multi, reference(texts, labels, multi_label=True, batch_size=16)):
        assert verdict == dict(zip(wanted["labels"], wanted["scores"]))
    assert multi[2] is None


def test_zero_shot_by_hand(bart_path):
    """Multi-label is a softmax over contradiction and entailment; single-label one over the entailments."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    labels = ["anger", "joy"]
    tokenizer = AutoTokenizer.from_pretrained(bart_path)
    model = AutoModelForSequenceClassification.from_pretrained(bart_path).eval()
    text = ITEMS[0].answer
    with torch.no_grad():
        logits = [
            model(**tokenizer(text, f"This example is {label}.", return_tensors="pt")).logits[0] for label in labels
        ]
    (found,) = judges.classifier(str(bart_path), "emotions", labels).judge(ITEMS[:1])
    for label, row in zip(labels, logits):
        assert found[label] == pytest.approx(row[[0, 2]].softmax(0)[1].item(), rel=1e-4)
    (top,) = judges.classifier(str(bart_path), "emotional", labels).judge(ITEMS[:1])
    assert top == labels[int(torch.stack(logits)[:, 2].argmax())]


def test_a_classifier_without_entailment_is_refused(roberta_path):
    with pytest.raises(EvaluationError, match="no entailment"):
        judges.classifier(str(roberta_path), "emotional", ["a", "b"]).judge(ITEMS[:1])


def test_go_emotions(roberta_path):
    from transformers import pipeline

    known = list(judges.read_labels(None))
    found = judges.go_emotions(str(roberta_path), known).judge(ITEMS)
    reference = pipeline("text-classification", model=str(roberta_path), device="cpu")
    assert found == [*(r["label"] for r in reference([i.answer for i in ITEMS[:2]])), None]


def test_a_classifier_with_other_labels_names_them(roberta_path):
    with pytest.raises(EvaluationError, match=r"admiration.*--labels"):
        judges.go_emotions(str(roberta_path), ["anger", "fear", "joy", "neutral", "sadness"]).judge(ITEMS[:1])


def test_a_classifiers_own_code_is_not_asked_for(roberta_path, tmp_path, monkeypatch):
    """transformers would ask on the terminal whether to run it, and somebody might say yes."""
    path = shutil.copytree(roberta_path, tmp_path / "evil")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "evil.py").write_text("raise SystemExit('it ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(EvaluationError, match="cannot load the classifier"):
        judges.go_emotions(str(path), ["joy"]).judge(ITEMS[:1])


def test_a_missing_classifier_is_one_line(tmp_path):
    pytest.importorskip("torch")
    with pytest.raises(EvaluationError, match="cannot load the classifier") as found:
        judges.classifier(str(tmp_path / "none"), "emotions", ["anger"]).judge(ITEMS[:1])
    assert "\n" not in str(found.value)


def test_a_missing_extra_names_the_command():
    with pytest.raises(EvaluationError, match=r"pip install 'mlx-emotion\[eval\]'"):
        judges.need_extra("no_such_module", "a figure")


# Label tables.


@pytest.mark.parametrize("content", ["[]", "{}", '{"joy": "up"}', '{"joy": true}', "not json"])
def test_a_broken_label_table(tmp_path, content):
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"labels\.json"):
        judges.read_labels(path)


def test_the_shipped_label_table_covers_go_emotions_and_is_explained():
    from mlx_emotion.evaluation.plan import circumplex_data

    data = circumplex_data()
    assert set(data["labels"]) == set(data["words"])
    assert len(data["labels"]) == 28 + 2
    assert data["labels"]["neutral"] is None


# Verdicts of chat models.


@pytest.mark.parametrize(
    ("kind", "reply", "verdict"),
    [
        ("topic", '{"topic": 1}', 1),
        ("topic", 'Sure! ```json\n{"topic": 0}\n``` Anything else?', 0),
        ("topic", '{"topic": 2}', None),
        ("topic", '{"topic": [1]}', None),
        ("topic", "I cannot judge that.", None),
        ("topic", 'The form is {"topic": 0}, so: {"topic": 1}', 1),
        ("topic", '{"topic": 1} {"topic": 5}', 1),
        ("scores", SCORES, dict.fromkeys(EAS_EMOTIONS, 10.0)),
        ("scores", SCORES.replace("10", "101", 1), None),
        ("scores", SCORES.replace("10", '"high"', 1), None),
        ("scores", SCORES[:-4], None),
        ("scores", '{"anger": 1}', None),
        ("scores", SCORES.replace("10", "NaN", 1), None),
    ],
)
def test_read_verdict(kind, reply, verdict):
    assert judges.read_verdict(kind, reply) == verdict


class Endpoint:
    """An OpenAI-compatible endpoint on this machine that gives the listed replies in turn, then the last for ever.

    A reply is an HTTP status, ``None`` (a body that is no JSON), bytes sent as they are, or the text of the answer.
    """

    def __init__(self, *replies: int | str | bytes | None) -> None:
        self.replies, self.seen, self.lock = list(replies), [], threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.seen.append((self.path, self.headers.get("Authorization"), body))
                    reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                if isinstance(reply, bytes):
                    self.wfile.write(reply)
                    return
                answer = {"choices": [{"message": {"content": reply}}]}
                data = b"<html>" if reply is None else json.dumps(answer).encode()
                self.send_response(reply if isinstance(reply, int) else 200)
                self.send_header("Content-Length", str(len(data)))
                if reply == 302:
                    self.send_header("Location", f"http://localhost:{outer.server.server_port}/other")
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                outer.seen.append((self.path, self.headers.get("Authorization"), None))
                self.send_error(404)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.spec = f"http://127.0.0.1:{self.server.server_port}/v1#judge-1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(judges.Endpoint, "pause", 0.0)


def test_an_endpoint_judges(monkeypatch):
    monkeypatch.setenv("MLX_EMOTION_JUDGE_KEY", "secret")
    with Endpoint('{"topic": 1}') as endpoint:
        assert judges.chat_judge(endpoint.spec, "topic").judge(ITEMS) == [1, 1, 1]
    path, key, body = endpoint.seen[0]
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer secret", "judge-1", 0)


def test_an_endpoint_that_is_busy_and_broken_at_first():
    with Endpoint(429, 500, None, b"not HTTP\r\n", SCORES) as endpoint:
        found = judges.chat_judge(endpoint.spec, "scores").judge(ITEMS[:1])
    assert found == [dict.fromkeys(EAS_EMOTIONS, 10.0)]
    assert len(endpoint.seen) == 5


def test_the_key_does_not_follow_a_redirect(monkeypatch):
    monkeypatch.setenv("MLX_EMOTION_JUDGE_KEY", "secret")
    with Endpoint(302) as endpoint, pytest.raises(EvaluationError, match="HTTP 302"):
        judges.chat_judge(endpoint.spec, "topic").judge(ITEMS[:1])
    assert {path for path, *_ in endpoint.seen} == {"/v1/chat/completions"}


def test_a_refusal_is_asked_once_more_and_then_missing():
    with Endpoint("I would rather not.") as endpoint:
        assert judges.chat_judge(endpoint.spec, "topic").judge(ITEMS[:1]) == [None]
    assert len(endpoint.seen) == 2


def test_a_request_that_is_not_taken_is_missing():
    with Endpoint(400, '{"topic": 1}') as endpoint:
        found = judges.chat_judge(endpoint.spec, "topic").judge(ITEMS)
    assert sorted(found, key=str) == [1, 1, None]


@pytest.mark.parametrize("status", [400, 422])
def test_an_endpoint_that_takes_no_request_says_why(status):
    with Endpoint(status) as endpoint, pytest.raises(EvaluationError, match=rf"HTTP {status}: .*choices"):
        judges.chat_judge(endpoint.spec, "topic").judge(ITEMS)


def test_a_batch_whose_only_request_is_not_taken_does_not_end_the_run():
    with Endpoint(400, '{"topic": 1}') as endpoint:
        assert judges.chat_judge(endpoint.spec, "topic").judge(ITEMS[:1]) == [None]


def test_a_wrong_key_ends_at_once():
    with Endpoint(401) as endpoint, pytest.raises(EvaluationError, match="refuses the key"):
        judges.chat_judge(endpoint.spec, "topic").judge(ITEMS[:1])
    assert len(endpoint.seen) == 1


def test_an_endpoint_out_of_reach():
    with Endpoint("") as endpoint:
        spec = endpoint.spec
    with pytest.raises(EvaluationError, match=r"out of reach.*--stage score"):
        judges.chat_judge(spec, "topic").judge(ITEMS[:1])


@pytest.mark.parametrize("key", ["sk-secret\nmore", "sk-secret\x7f", "sk-secr\u00e9t"])
def test_a_key_that_is_none_is_not_shown(monkeypatch, key):
    monkeypatch.setenv("MLX_EMOTION_JUDGE_KEY", key)
    with pytest.raises(UsageError, match="the key in MLX_EMOTION_JUDGE_KEY") as found:
        judges.chat_judge("http://127.0.0.1:9/v1#judge", "topic")
    assert "secr" not in str(found.value)


@pytest.mark.parametrize("address", ["http://me:secret@127.0.0.1:9/v1#judge", "http://me:secret@[::1#judge"])
def test_an_address_with_a_password_is_not_repeated(address):
    with pytest.raises(UsageError, match="name or password") as found:
        judges.chat_judge(address, "topic")
    assert "secret" not in str(found.value)


def test_endless_nesting_is_no_verdict():
    deep = "[" * 200_000
    assert judges.read_verdict("topic", '{"topic": ' + deep + "}") is None
    body = deep.encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    with Endpoint(head + body) as endpoint:
        assert judges.chat_judge(endpoint.spec, "topic").judge(ITEMS[:1]) == [None]


def test_an_endpoint_without_a_model_name():
    with pytest.raises(UsageError, match="names no model"):
        judges.chat_judge("http://127.0.0.1:1/v1", "topic")


@pytest.mark.parametrize("url", ["http://", "http://here:port", "http://here:99999", "http://[::1", "http://a b/v1"])
def test_an_endpoint_with_a_malformed_address(url):
    with pytest.raises(UsageError, match="is no address"):
        judges.chat_judge(f"{url}#judge", "topic")


def test_a_local_model_is_asked_and_its_nonsense_is_missing(tiny_model_path):
    judge = judges.chat_judge(str(tiny_model_path), "topic")
    assert judge.judge(ITEMS[:2]) == [None, None]


def test_a_local_judge_says_of_many_what_it_says_of_each(tiny_model_path, monkeypatch):
    """Also one whose rows can't be batched."""
    prompts = ["Is it good?", "A much longer question, which is padded to nothing: is this one any good?", "Yes?"]

    def replies(part):
        return shared().run(judges._local_replies, str(tiny_model_path), part, False)

    each = [replies([p])[0] for p in prompts]
    assert replies(prompts) == each
    monkeypatch.setattr("mlx_emotion.batch.prefilled_together", lambda _: 0)
    assert replies(prompts) == each


def test_one_local_judge_at_a_time_is_kept(monkeypatch):
    held = []

    def load_model(name, **_):
        held.append(len(judges._local))
        return name

    monkeypatch.setattr("mlx_emotion.models.load_model", load_model)
    monkeypatch.setattr(judges, "_local", {})
    assert [judges.local_model(n) for n in "aab"] == ["a", "a", "b"]
    assert judges.local_model("b", None, False) == "b"
    assert held == [0, 0]


def test_a_judges_own_code_runs_only_where_that_is_allowed(monkeypatch):
    given = []

    def load_model(name, **options):
        given.append(options["trust_remote_code"])
        raise OSError(name)

    monkeypatch.setattr("mlx_emotion.models.load_model", load_model)
    for allowed in (False, True):
        with pytest.raises(OSError, match="with-code"):
            judges.chat_judge("with-code", "topic", allowed).judge(ITEMS[:1])
    assert given == [False, True]
