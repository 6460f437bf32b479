"""Who says what an answer shows. Every judge is exchangeable, named in every table, and may refuse.

A verdict is a plain JSON value, or ``None`` where the judge gave none that is valid; ``None`` is counted
and reported, never scored as 0. ``builtin`` needs nothing; the others are classifiers through
``transformers`` pipelines, a local mlx-lm model, or an OpenAI-compatible endpoint.
"""

from __future__ import annotations

import functools
import http.client
import importlib.util
import json
import math
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..errors import EvaluationError, MLXEmotionError, UsageError
from ..files import MAX_TEXT, check_size
from . import lexicon
from .metrics import EAS_EMOTIONS, EPS_LABELS, overlaps

T = TypeVar("T")
BUILTIN = "builtin"
KEY_VARIABLES = ("MLX_EMOTION_JUDGE_KEY", "OPENAI_API_KEY")
INSTALL = "pip install 'mlx-emotion[eval]'"
ITSELF = "the model itself"
"""How the label of a perplexity judge ends that is the evaluated model."""


@dataclass(frozen=True)
class Item:
    """What a judge sees of one answer."""

    question: str
    answer: str


class Judge(Protocol):
    """One judge of one kind of verdict.

    ``name`` tells it apart from others in files, ``label`` is what tables say; ``batch`` is how many
    items it wants at once. ``judge`` gives one verdict an item, in order. ``check`` finds out, before any
    answer is made, what can be known to be wrong; it raises ``MLXEmotionError``.
    """

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def batch(self) -> int: ...

    def check(self) -> None: ...

    def judge(self, items: Sequence[Item]) -> list[Any]: ...


def need_extra(module: str, what: str) -> None:
    """Raises ``EvaluationError`` that names the install command where ``module`` is missing."""
    if importlib.util.find_spec(module) is None:
        raise EvaluationError(f"{what} needs {module}, which is not installed; {INSTALL}")


@dataclass(frozen=True)
class Builtin:
    """A judge of this package: ``rule`` on each item. Coarse, deterministic, and labelled as built in."""

    kind: str
    label: str
    rule: Callable[[Item], Any]
    batch: int = 1
    unknown: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{BUILTIN}:{self.kind}"

    def check(self) -> None:
        """Raises ``EvaluationError`` where the label table lacks ``unknown``, which it can say."""
        _check_labels("the built-in lexicon", self.unknown)

    def judge(self, items: Sequence[Item]) -> list[Any]:
        self.check()
        return [self.rule(i) for i in items]


def _lexicon_scores(item: Item) -> dict[str, float]:
    return {e: round(100 * lexicon.strength(v), 4) for e, v in lexicon.score(item.answer).items()}


def _lexicon_labels(item: Item) -> dict[str, float]:
    found = {e: lexicon.strength(v) for e, v in lexicon.score(item.answer).items()}
    return {**found, "neutral": math.prod(1 - v for v in found.values())}


# What each kind of verdict is: the built-in judge's label and rule.
_BUILTIN = {
    "topic": ("built-in topic-word overlap", lambda i: overlaps(i.question, i.answer)),
    "scores": ("built-in lexicon", _lexicon_scores),
    "emotional": (
        "built-in lexicon",
        lambda i: EPS_LABELS[2] if lexicon.top(i.answer) else EPS_LABELS[1],
    ),
    "emotions": ("built-in lexicon", _lexicon_labels),
    "top": ("built-in lexicon", lambda i: lexicon.top(i.answer) or "neutral"),
}
KINDS = tuple(_BUILTIN)
"""Kinds of verdict: ``topic`` 0 or 1; ``scores`` emotion -> 0 to 100; ``emotional`` one of the three EPS
labels; ``emotions`` label -> probability; ``top`` one GoEmotions label."""


def builtin(kind: str, unknown: Sequence[str] = ()) -> Builtin:
    label, rule = _BUILTIN[kind]
    return Builtin(kind, label, rule, unknown=tuple(unknown))


def _check_labels(judge: str, unknown: Sequence[str]) -> None:
    if unknown:
        raise EvaluationError(
            f"{judge} has labels without a place on the circumplex: {', '.join(unknown[:8])}; "
            "give a table that has them with --labels"
        )


# Classifiers through transformers.


def _labels(model: str) -> list[str]:
    """A classifier's labels, from its config alone. Raises ``EvaluationError`` for a missing extra or model."""
    need_extra("torch", f"the classifier {model}")
    from transformers import AutoConfig

    # Told nothing, transformers asks on the terminal whether the model's own code may run.
    config = _loading(model, lambda: AutoConfig.from_pretrained(model, trust_remote_code=False))
    return [str(n) for n in config.id2label.values()]


@functools.lru_cache(maxsize=2)
def _pipeline(task: Any, model: str) -> Any:
    import torch
    from transformers import pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # a service that it would ask to rewrite a model on the hub
    device = "mps" if torch.backends.mps.is_available() else "cpu"
    return _loading(
        model,
        lambda: pipeline(
            task, model=model, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
        ),
    )


def _loading(model: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # the hub, the file system and transformers raise many kinds here
        raise EvaluationError(f"cannot load the classifier {model}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class ZeroShot:
    """Zero-shot classification by natural-language inference, such as facebook/bart-large-mnli.

    ``kind`` ``emotional``: one of the EPS labels, by softmax over their entailment logits. ``emotions``:
    a probability per label of ``labels``, each on its own. Raises ``EvaluationError`` for a model that
    has no entailment label.
    """

    batch = 16

    def __init__(self, model: str, kind: str, labels: Sequence[str]) -> None:
        self.kind, self.labels = kind, list(labels)
        self.name = f"{model}:{kind}:{','.join(self.labels)}"
        self.label = Path(model).name
        self._model = model

    def check(self) -> None:
        labels = _labels(self._model)
        if not any(n.lower().startswith("entail") for n in labels):
            raise EvaluationError(
                f"{self._model} cannot judge by inference: its labels are {', '.join(labels[:8])}, with no entailment; "
                "give an NLI model such as facebook/bart-large-mnli as --classifier"
            )

    def judge(self, items: Sequence[Item]) -> list[Any]:
        self.check()
        classify = _pipeline("zero-shot-classification", self._model)
        multi = self.kind == "emotions"
        # An empty text is an error to the pipeline, and no classifier has anything to say about it.
        texts = [i.answer for i in items if i.answer.strip()]
        found = iter(classify(texts, self.labels, multi_label=multi, batch_size=self.batch) if texts else [])
        results = [next(found) if i.answer.strip() else None for i in items]
        if multi:
            return [r and dict(zip(r["labels"], map(float, r["scores"]))) for r in results]
        return [r and r["labels"][0] for r in results]


class GoEmotions:
    """A text classifier with GoEmotions labels: an answer's top one.

    Raises ``EvaluationError`` for a classifier with labels that ``known``, the label table, lacks.
    """

    batch = 16

    def __init__(self, model: str, known: Sequence[str]) -> None:
        self.name, self.label = f"{model}:top", Path(model).name
        self._model, self._known = model, set(known)

    def check(self) -> None:
        _check_labels(self._model, sorted(set(_labels(self._model)) - self._known))

    def judge(self, items: Sequence[Item]) -> list[Any]:
        self.check()
        classify = _pipeline("text-classification", self._model)
        texts = [i.answer for i in items if i.answer.strip()]
        found = iter(classify(texts, batch_size=self.batch, truncation=True) if texts else [])
        return [str(next(found)["label"]) if i.answer.strip() else None for i in items]


# Judging by a chat model.

ASK = {
    "topic": (
        "Below are a question and an answer to it. Does the answer touch the topic of the question? Mood, tone and "
        'quality do not matter. Reply with JSON only: {{"topic": 1}} if it does, {{"topic": 0}} if it does not.\n\n'
        "Question: {question}\n\nAnswer: {answer}"
    ),
    "scores": (
        "Rate how strongly the following text expresses each emotion, from 0 (not at all) to 100 (as strongly as a "
        'text can). Reply with JSON only, in this form: {{"anger": 0, "disgust": 0, "fear": 0, "joy": 0, '
        '"sadness": 0, "surprise": 0}}\n\nText: {answer}'
    ),
}


def read_verdict(kind: str, reply: str) -> Any:
    """The verdict in a chat model's reply, or ``None`` where there is no valid one (a refusal, broken JSON).

    The last one counts: a model may repeat the form, or weigh another verdict, before it gives its own.
    """
    found: Any = None
    for match in re.finditer(r"\{[^{}]*\}", reply):
        try:
            data = json.loads(match[0])
        except (ValueError, RecursionError):
            continue
        if kind == "topic":
            value = data.get("topic")
            if value in (0, 1):  # true and false are 1 and 0
                found = int(value)
        else:
            values = [data.get(e) for e in EAS_EMOTIONS]
            if all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 100 for v in values):
                found = {e: float(v) for e, v in zip(EAS_EMOTIONS, values)}
    return found


class LocalChat:
    """A local mlx-lm model as the judge, asked greedily on the engine's thread."""

    batch = 16

    def __init__(self, model: str, kind: str, trust_remote_code: bool = False) -> None:
        self.kind, self.name, self.label = kind, f"{model}:{kind}", f"{Path(model).name}, local"
        self._model, self._trusted = model, trust_remote_code

    def check(self) -> None:
        from ..models import resolve

        resolve(self._model)

    def judge(self, items: Sequence[Item]) -> list[Any]:
        from ..engine import shared

        prompts = [ASK[self.kind].format(question=i.question, answer=i.answer) for i in items]
        replies = shared().run(_local_replies, self._model, prompts, self._trusted)
        return [read_verdict(self.kind, r) for r in replies]


_local: dict[tuple[str, str | None, bool], Any] = {}


def local_model(name: str, adapter: str | None = None, trust_remote_code: bool = False) -> Any:
    """A judge model, kept loaded until another is wanted; on the engine's thread."""
    from ..models import load_model

    key = name, adapter, trust_remote_code
    if key not in _local:
        _local.clear()  # before: two may not fit
        _local[key] = load_model(name, adapter=adapter, trust_remote_code=trust_remote_code)
    return _local[key]


def _local_replies(model: str, prompts: list[str], trust_remote_code: bool) -> list[str]:
    from ..batch import Finished, Job, run_batch
    from ..session import Voice
    from ..steering import Taps

    loaded = local_model(model, trust_remote_code=trust_remote_code)
    template = loaded.template
    tokens = [template.encode(template.render([{"role": "user", "content": p}], think=False)) for p in prompts]
    jobs = (Job(n, prompt) for n, prompt in enumerate(tokens))
    # Through the project's own batching, which knows the models that can't be batched; its taps stay off.
    answers = run_batch(Voice(loaded, Taps(loaded.model, "residual"), None), jobs, batch_size=16, max_tokens=96)
    texts = {a.key: a.text for a in answers if isinstance(a, Finished)}
    return [texts[n] for n in range(len(prompts))]


HARMLESS = Item("What is two and two?", "Two and two is four.")
"""What any endpoint that works gives a verdict on."""


def _key() -> str | None:
    """The endpoint's key, from the environment. Raises ``UsageError`` that does not show it."""
    for variable in KEY_VARIABLES:
        if key := os.environ.get(variable, "").strip():
            if not all(" " <= c <= "~" for c in key):  # a line break would end the header, and be told with the key
                raise UsageError(f"the key in {variable} has a character that no key has, such as a line break")
            return key
    return None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error with its status: followed, it would carry the key to whatever host it names."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)


class _RefusedError(Exception):
    """An endpoint will not take one request, such as a text that its filter stops or that is too long for it."""


class Endpoint:
    """An OpenAI-compatible chat endpoint, ``URL#MODEL``; the key comes from the environment.

    Busy and broken replies are tried again with growing pauses. A request that it will not take is no
    verdict. Raises ``UsageError`` for a malformed address, ``EvaluationError`` when the endpoint stays out
    of reach, refuses the key or every request; what was judged before is kept.
    """

    batch = 8
    alone = True
    tries = 5
    pause = 1.0
    timeout = 60.0

    def __init__(self, address: str, kind: str) -> None:
        url, _, model = address.partition("#")
        if "@" in url:  # nothing uses it, and it would stand in files and messages
            raise UsageError(f"--judge has a name or password in its address; set the key in {KEY_VARIABLES[0]}")
        if not model:
            raise UsageError(f"--judge {address} names no model; write it after a #, as in {url}#my-model")
        try:
            parts = urllib.parse.urlsplit(url)
            fine = bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
        except ValueError:  # a port that is no number, half an IPv6 address
            fine = False
        if not fine:
            raise UsageError(f"--judge {address!r} is no address; wanted one such as http://localhost:8080/v1#my-model")
        self.url, self.model, self.kind = url.rstrip("/"), model, kind
        self.name, self.label = f"{address}:{kind}", model
        self._key = _key()

    def check(self) -> None:
        """An endpoint may come up while answers are made; a wrong address has been refused already."""

    def judge(self, items: Sequence[Item]) -> list[Any]:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(self._one, items))
        refused = [f for f in found if isinstance(f, _RefusedError)]
        # Not one was taken: is it these few texts, or every text?
        if refused and len(refused) == len(found) and isinstance(self._one(HARMLESS), _RefusedError):
            raise EvaluationError(f"judge {self.url} refuses every request: {refused[0]}; the answers are kept")
        return [None if isinstance(f, _RefusedError) else f for f in found]

    def _one(self, item: Item) -> Any:
        prompt = ASK[self.kind].format(question=item.question, answer=item.answer)
        try:
            verdict = read_verdict(self.kind, self._ask(prompt))
            # Once more: a chat model's slip is often not repeated.
            return verdict if verdict is not None else read_verdict(self.kind, self._ask(prompt))
        except _RefusedError as refusal:
            return refusal

    def _ask(self, prompt: str) -> str:
        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        problem = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(min(self.pause * 2 ** (attempt - 1), 30))
            request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
            try:
                with _opener.open(request, timeout=self.timeout) as reply:
                    content = json.loads(reply.read(1 << 20))["choices"][0]["message"]["content"]
                    return content if isinstance(content, str) else ""
            except RecursionError:  # endlessly nested: no verdict
                return ""
            except urllib.error.HTTPError as error:
                if error.code in (401, 403):
                    raise EvaluationError(
                        f"judge {self.url} refuses the key (HTTP {error.code}); set {KEY_VARIABLES[0]}"
                    ) from None
                problem = _http_problem(error)
                if error.code in (400, 413, 422):
                    raise _RefusedError(problem) from None
                if error.code < 500 and error.code not in (408, 409, 429):
                    break
            except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
                problem = str(getattr(error, "reason", error)) or type(error).__name__
        raise EvaluationError(
            f"judge {self.url} is out of reach: {problem}; the answers are kept, try again with --stage score"
        )


def _http_problem(error: urllib.error.HTTPError) -> str:
    """The status, and how the reply begins, where servers say what is wrong."""
    try:
        body = error.read(600).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        body = ""
    said = " ".join("".join(c if c.isprintable() else " " for c in body).split())[:200]
    return f"HTTP {error.code}: {said}" if said else f"HTTP {error.code}"


# Choosing and asking.


def chat_judge(spec: str, kind: str, trust_remote_code: bool = False) -> Judge:
    """The judge of ``topic`` or ``scores``: ``builtin``, a local model, or ``URL#MODEL``."""
    if spec == BUILTIN:
        return builtin(kind)
    if spec.startswith(("http://", "https://")):
        return Endpoint(spec, kind)
    return LocalChat(spec, kind, trust_remote_code)


def classifier(spec: str, kind: str, labels: Sequence[str]) -> Judge:
    """The judge of ``emotional`` or ``emotions``: ``builtin`` or an NLI model."""
    return builtin(kind) if spec == BUILTIN else ZeroShot(spec, kind, labels)


def go_emotions(spec: str, known: Sequence[str]) -> Judge:
    """The judge of ``top``: ``builtin`` or a classifier with GoEmotions labels."""
    if spec == BUILTIN:
        return builtin("top", sorted({*lexicon.shipped().emotions, "neutral"} - set(known)))
    return GoEmotions(spec, known)


def read_labels(path: str | Path | None) -> dict[str, float | None]:
    """The label table: label -> direction in degrees, or ``None`` for one without.

    Raises ``EvaluationError`` for a file that cannot be read, ``UsageError`` for what is wrong in it.
    """
    from .plan import circumplex_data

    if path is None:
        return circumplex_data()["labels"]
    check_size(Path(path), MAX_TEXT, UsageError, "a label table is a small JSON object")
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a label table: {error}") from None
    table = data.get("labels", data) if isinstance(data, Mapping) else None
    if not isinstance(table, Mapping) or not table:
        raise UsageError(f'{path}: wanted one JSON object, {{"label": degrees or null, ...}}')
    for label, angle in table.items():
        number = isinstance(angle, int | float) and not isinstance(angle, bool) and math.isfinite(angle)
        if angle is not None and not number:
            raise UsageError(f"{path}: {label!r} is {angle!r}, wanted degrees or null")
    return dict(table)


def verdicts(judge: Judge, items: Sequence[Item]) -> list[Any]:
    """The judge's verdicts on one batch; none on an empty answer, which shows nothing. Raises ``EvaluationError``."""
    said = [i for i in items if i.answer.strip()]
    found = iter(guarded(judge.label, lambda: judge.judge(said)) if said else ())
    return [next(found) if i.answer.strip() else None for i in items]


def guarded(judge: str, work: Callable[[], T]) -> T:
    """What ``work`` of a judge gives; one line where it fails. Raises ``EvaluationError``."""
    try:
        return work()
    except MLXEmotionError:
        raise
    except Exception as error:  # odd input, memory that runs out, a model's own code
        raise EvaluationError(f"judge {judge} failed: {first_line(error)}; the answers are kept") from error
