"""Train the embedded model from the corpus and build the folder that ships.

One command from text to shipped folder::

    python scripts/train_embedded_model.py

It checks the corpus, trains a tokenizer and a Llama-architecture chat model, quantises it with
mlx-lm, makes and calibrates a pack for each site with the ordinary ``mlx-emotion`` commands, and
writes the model card. Killed at any moment, the same command goes on from the last checkpoint.
Training itself runs on PyTorch (extra ``train``): on a CPU it was four times faster than MLX
(``docs/decisions.md``); everything after it is MLX.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from corpus import ANSWERS, EMOTIONS, WORDINGS, Dialogues, Topic, Turn, expand
from corpus import load as load_corpus
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mlx_emotion.errors import MLXEmotionError
from mlx_emotion.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "mlx_emotion" / "embedded"
PACKS = ROOT / "vectors" / "packs"
RESULTS = ROOT / "docs" / "results"

IM_START, IM_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FIRST_TOKENS, FIRST_WEIGHT = 8, 3.0  # the beginning of each of an answer's lines decides what it is about
LENGTH_STEP = 16
TOPIC_WEIGHT = 0.3
FELT_WEIGHT = 0.2
SHARPER = 1.3  # times the final norm's weights when it ships: temperature 0.7 then chooses as 0.54 would
SHARE = "0.45"  # of the strongest fluent dose: so half of it is half-felt
EXTRACT = ["--batch-size", "32", "--max-tokens", "60", "--no-calibrate"]
STAGE = "| {millions} million | {rate} | {layers} × {width}, {feed} |"  # a row of the card
ROUNDED = 0.1  # last share of the steps, taken with the weights rounded as they will be
SPOILT = 0.25  # most of a reply's words replaced, at first; none at last
ODD = 0.2  # most of the other messages' words replaced
RESIDUAL, RESIDUAL_STRENGTH = 0.35, 0.4  # share of pushes at layer outputs; there each layer's adds to those before
COMMON, APART = 0.3, 0.05  # most that the emotions' vectors may share of their squared length; weight of keeping to it
MEMORY = 0.998  # per step, of the running means
ENOUGH = 200  # tokens seen in each setting before pushes begin
REPLIES, LEAK = 256, 0.6  # replies remembered; most that they mix into a vector, of their own distance from the mean
WRITES = ("o_proj.weight", "down_proj.weight")  # matrices through which a layer adds to the stream
LONGEST = 224  # tokens of a row, several answers in it
EMBEDDED = 0.5  # size of the embeddings at first: a word must be seen through what layers write beside it
TABLE_RATE = 4.0  # times the matrices' learning rate, for embeddings and norms
LATER = 0.5  # times the rate and the noise of the round before
OTHER_WEIGHT = 0.02  # loss weight of tokens that are not the companion's: they teach words, not answers


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--work", type=Path, default=ROOT / "build" / "embedded", help="checkpoints and logs")
    p.add_argument("--output", type=Path, default=SHIPPED, help="folder of the shipped model")
    p.add_argument("--topics", nargs="*", metavar="NAME", help="only these topics of the corpus")
    p.add_argument("--steps", type=int, nargs="+", default=[7000, 6000], help="of each round; more can be added later")
    p.add_argument("--tokens", type=int, default=2048, help="tokens a step")
    p.add_argument("--context", type=int, default=192, help="most tokens of a dialogue")
    p.add_argument("--width", type=int, default=256)
    p.add_argument("--layers", type=int, default=8)
    p.add_argument("--feed", type=int, default=1536, help="width of the feed-forward parts")
    p.add_argument("--vocabulary", type=int, default=3072)
    p.add_argument("--rate", type=float, default=2.5e-3, help="peak learning rate of the layers")
    p.add_argument("--dtype", default="float32", choices=("float16", "bfloat16", "float32"))
    p.add_argument("--bits", type=int, default=6)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS")
    p.add_argument("--start", type=Path, metavar="FOLDER", help="begin with the weights and tokens of this model")
    p.add_argument("--restart", action="store_true", help="forget the checkpoint in --work")
    p.add_argument("--no-packs", action="store_true", help="stop after the model folder")
    return p.parse_args()


def check_machine(args: argparse.Namespace) -> None:
    """End with a line if the machine has too little disk or memory for the build."""
    args.work.mkdir(parents=True, exist_ok=True)
    parameters = args.vocabulary * args.width + args.layers * args.width * (4 * args.width + 3 * args.feed)
    disk, wanted = shutil.disk_usage(args.work).free, parameters * 40
    if disk < wanted:
        sys.exit(f"{args.work}: {disk >> 20} MiB of disk free, the build needs {wanted >> 20}")
    # Weights, gradients and two moments, the logits with their gradient, and the activations.
    wanted = 4 * (4 * parameters + args.tokens * (3 * args.vocabulary + 40 * args.layers * args.width))
    if (memory := free_memory()) < wanted:
        sys.exit(f"{memory >> 20} MiB of memory free, training needs {wanted >> 20}; lower --tokens")


def check_output(output: Path, work: Path) -> None:
    """End with a line if ``output`` is no place for the model: what is there now will be removed."""
    if output == work or output in work.parents:
        sys.exit(f"{output}: the model folder is made anew and can't hold --work, {work}")
    if output.exists() and not (output / "training.json").is_file() and (not output.is_dir() or any(output.iterdir())):
        sys.exit(f"{output}: there is something that this script did not make; name another folder with --output")


def free_memory() -> int:
    """Bytes that a program may still take: on Linux with what caches give back, elsewhere all that there is."""
    with contextlib.suppress(OSError):
        found = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(found["MemAvailable"].split()[0]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def make_tokenizer(topics: list[Topic], args: argparse.Namespace):
    """A byte-level BPE tokenizer trained on every reading of every line, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=args.vocabulary,
        special_tokens=[PAD, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    dialogues = iter(Dialogues(topics, args.seed))
    sample = [turn.content for _ in range(20000) for turn in next(dialogues)]
    lines = [r for t in topics for section, ln in t.written if section != "held out" for r in expand(ln.text)]
    raw.train_from_iterator(sample + lines + ["system\n", "user\n", "assistant\n"] * 1000, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=IM_END, pad_token=PAD)
    tokenizer.chat_template = TEMPLATE
    tokenizer.model_max_length = args.context
    return tokenizer


def begun(rounds: list[int], step: int) -> list[int]:
    """Those of ``rounds`` that have begun when ``step`` steps are done."""
    return [n for n, end in zip(rounds, itertools.accumulate(rounds), strict=True) if end - n < step]


@dataclass
class Place:
    """Where a step is: ``step`` of ``steps`` in round ``number``, all from 0 on."""

    number: int
    step: int
    steps: int

    @classmethod
    def of(cls, step: int, rounds: list[int]) -> Place:
        *before, steps = begun(rounds, step + 1)
        return cls(len(before), step - sum(before), steps)

    @property
    def warmup(self) -> int:
        """Steps in which the rate rises; then it falls."""
        return min(100, self.steps // 10)

    @property
    def rate(self) -> float:
        """Share of the highest learning rate."""
        share = LATER**self.number
        if self.step < self.warmup:
            return share * (self.step + 1) / self.warmup
        fallen = (1 - math.cos(math.pi * (self.step - self.warmup) / (self.steps - self.warmup))) / 2
        return share * (1 - 0.98 * fallen)

    @property
    def noise(self) -> float:
        """Share of a reply's words that are replaced."""
        return SPOILT * LATER**self.number * (1 - self.step / self.steps)

    @property
    def late(self) -> bool:
        """Whether the weights are rounded."""
        return self.step >= self.steps * (1 - ROUNDED)

    @property
    def answers(self) -> int:
        """To one message. What can be said is known after the first round, but not to which of all messages."""
        return 1 if self.number else ANSWERS


@dataclass
class Row:
    """A dialogue as token ids. Lists are as long as ``ids``; numbers are -1 where there is nothing to say.

    ``places``: positions, the same for several answers to one message. ``branch``: which of these a token belongs to,
    from 1 on, or 0 for what comes before them. ``weights``: loss weights. ``about``: a reply's topic, at each of its
    tokens. ``asked``: the setting of a reply's tokens, 0 plain, then one of the emotions. ``pushes``: (start, stop,
    strength per emotion). ``felt``: before each token of a reply, 1 for the emotion of the line that it stands in, 0
    for each other.
    """

    ids: list[int]
    places: list[int]
    branch: list[int]
    weights: list[float]
    about: list[int]
    asked: list[int]
    pushes: list[tuple[int, int, list[float]]]
    felt: list[list[float]]


class Encoder:
    """Dialogues to rows: ``longest`` tokens at most for one that is gone through with one answer.

    Of several answers to a message as many are in the row as ``LONGEST`` has place for. None of them sees another.
    """

    def __init__(self, tokenizer, topics: list[Topic], longest: int) -> None:
        self.tokenizer, self.longest, self.most = tokenizer, longest, max(longest, LONGEST)
        self.numbers = {t.name: n for n, t in enumerate(topics)}
        self.newline = self.ids("\n")
        self.start, self.end, self.pad = tokenizer.convert_tokens_to_ids([IM_START, IM_END, PAD])
        self.roles = {r: [self.start, *self.ids(f"{r}\n")] for r in ("system", "user", "assistant")}

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def __call__(self, dialogue: list[Turn]) -> Row:
        ids: list[int] = []
        places: list[int] = []
        branch: list[int] = []
        weights: list[float] = []
        about: list[int] = []
        asked: list[int] = []
        pushes: list[tuple[int, int, list[float]]] = []
        felt: list[list[float]] = []
        unknown = [-1.0] * len(EMOTIONS)
        pairs = itertools.pairwise(dialogue)
        first = next((n for n, (a, b) in enumerate(pairs) if a.role == b.role), len(dialogue))  # of several answers
        shared = answer = 0
        for n, turn in enumerate(dialogue):
            given = self.ids(turn.content[: turn.given])
            # A line's space before it belongs to its first token.
            cuts = [turn.given, *(at - 1 for at, _ in turn.lines[1:]), len(turn.content)]
            lines = [self.ids(turn.content[a:b]) for a, b in itertools.pairwise(cuts)]
            lines[-1].append(self.end)
            head, body = self.roles[turn.role] + given, [token for line in lines for token in line]
            whole = len(head) + len(body) + len(self.newline)
            begin = len(ids)
            if n >= first:
                shared = shared or begin
                if shared + whole > self.longest or begin + whole > self.most:
                    break
                begin, answer = shared, n - first + 1
            places += range(begin, begin + whole)
            branch += [answer] * whole
            ids += head + body + self.newline
            kept = [OTHER_WEIGHT] * len(body)
            if turn.role == "assistant":
                kept = [w for line in lines for w in ([FIRST_WEIGHT] * FIRST_TOKENS + [1.0] * len(line))[: len(line)]]
            weights += [0.0] * len(head) + kept + [0.0] * len(self.newline)
            about += [-1] * (len(ids) - len(about))
            asked += [-1] * (len(ids) - len(asked))
            felt += [unknown] * (len(ids) - len(felt))
            start = len(ids) - len(self.newline) - len(body) - 1  # the last token before the reply
            if turn.topic:
                about[start : start + len(body)] = [self.numbers[turn.topic]] * len(body)
            if turn.asked:
                number = ("plain", *EMOTIONS).index(turn.asked)
                asked[start + 1 : start + len(body)] = [number] * (len(body) - 1)
            if turn.lines:
                shown = [[float(e == name) for e in EMOTIONS] for _, name in turn.lines]
                felt[start : start + len(body)] = [s for s, line in zip(shown, lines, strict=True) for _ in line]
            if turn.push:
                strengths = dict(turn.push)
                pushes.append((start, start + len(body), [strengths.get(e, 0.0) for e in EMOTIONS]))
        n = self.most if answer else self.longest
        return Row(ids[:n], places[:n], branch[:n], weights[:n], about[:n], asked[:n], pushes, felt[:n])


def padded(lists: list[list], length: int, filler: Any) -> np.ndarray:
    return np.array([x + [filler] * (length - len(x)) for x in lists])


def in_steps(length: int) -> int:
    """``length`` rounded up, so that the few shapes there are can reuse their memory."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def batches(topics: list[Topic], encoder: Encoder, args: argparse.Namespace, step: int) -> Iterator[tuple]:
    """Batches from ``step`` on, each about ``--tokens`` large.

    They are (ids, places, branch, weights, about, asked, felt, pushes). ``pushes`` are ``[2 sites, rows, tokens,
    emotions]``: a row is pushed at one site, all along.

    A row is one dialogue from its first token, as in use: laid end to end in long rows, the model
    learned to say answers but not to which question. Dialogues of like length go together, so that
    little is padding. Each block of steps has its own seed: a resumed run sees the same text.
    """
    block = args.checkpoint_every
    while True:
        place = Place.of(step, args.steps)
        dialogues = iter(Dialogues(topics, args.seed * 1_000_003 + step // block, place.answers))
        order = random.Random(f"{args.seed} {step}")
        ready: list[list[Row]] = []
        rest: list[Row] = []
        for _ in range(block):
            while not ready:
                rows, rest = rest, []
                gathered = sum(len(row.ids) for row in rows)
                while gathered < 16 * args.tokens:
                    rows.append(encoder(next(dialogues)))
                    gathered += len(rows[-1].ids)
                for row in sorted(rows, key=lambda row: -len(row.ids)):
                    if rest and (len(rest) + 1) * in_steps(len(rest[0].ids)) > args.tokens:
                        ready.append(rest)
                        rest = []
                    rest.append(row)
                order.shuffle(ready)
            chunk = ready.pop()
            longest = in_steps(len(chunk[0].ids))
            pushes = np.zeros((2, len(chunk), longest, len(EMOTIONS)), np.float32)
            for n, row in enumerate(chunk):
                site = int(order.random() < RESIDUAL)
                for start, stop, strengths in row.pushes:
                    pushes[site, n, start:stop] = np.array(strengths) * (RESIDUAL_STRENGTH if site else 1.0)

            yield (
                padded([row.ids for row in chunk], longest, encoder.pad),
                padded([row.places for row in chunk], longest, 0),
                padded([row.branch for row in chunk], longest, 0),
                padded([row.weights for row in chunk], longest, 0.0).astype(np.float32),
                padded([row.about for row in chunk], longest, -1),
                padded([row.asked for row in chunk], longest, -1),
                padded([row.felt for row in chunk], longest, [-1.0] * len(EMOTIONS)).astype(np.float32),
                pushes,
            )
        step += block


def spoilt(ids: torch.Tensor, weights: torch.Tensor, most: float) -> torch.Tensor:
    """``ids`` with words of other messages in place of some of half of the rows', as inputs only.

    A message must be understood although some of its words, up to ``ODD``, mean nothing. A reply known by heart can be
    gone on with from its last few words alone, whatever the question was: then one odd word in sampling leads into
    another topic's answer. With words that can't be trusted, up to ``most`` of a reply's, the question counts.
    """
    some = torch.rand(len(ids), 1, device=ids.device) < 0.5
    for kind, share in ((weights >= 1, most), ((weights > 0) & (weights < 1), ODD)):
        rate = torch.rand(len(ids), 1, device=ids.device) * share * some
        words = ids[kind]
        if not len(words):
            continue
        other = words[torch.randint(len(words), ids.shape, device=ids.device)]
        ids = torch.where(kind & (torch.rand(ids.shape, device=ids.device) < rate), other, ids)
    return ids


class Heads(torch.nn.Module):
    """What the middle layer is to tell at each token of a reply, in training only: its topic and its feeling.

    Which words say what a message is about is the hard part of answering a new wording, and a feeling that
    stands out half-way up, in a direction of its own, is one that a vector can give.
    """

    def __init__(self, width: int, topics: int) -> None:
        super().__init__()
        self.topic = torch.nn.Linear(width, topics)
        self.felt = torch.nn.Linear(width, len(EMOTIONS))

    def forward(self, middle, about, felt):
        """The two losses, of ``middle`` ``[B, T, d]``."""
        middle = F.rms_norm(middle.float(), (middle.shape[-1],))
        topics = F.cross_entropy(self.topic(middle).mT, about, ignore_index=-1, reduction="none")
        # Where a reply is yet to begin only the question tells; after that its own words do, and it must not be lost.
        told = about >= 0
        first = told & F.pad(about[:, :-1] < 0, (1, 0), value=True)
        topic_loss = sum((topics * at).sum() / at.sum().clamp(min=1) for at in (first, told)) / 2
        known = (felt >= 0).float()
        each = F.binary_cross_entropy_with_logits(self.felt(middle), felt.clamp(min=0), reduction="none")
        return topic_loss, (each * known).sum() / known.sum().clamp(min=1)


class Shifts:
    """What steering will do to the model, done in training.

    Keeps running means of what attention and layers put out in each setting; the difference of an emotion's
    to the plain one is its vector as ``extract`` will find it (method ``mean``). Rows with ``pushes`` get these
    vectors added where an instruction would have asked. An extraction has some hundred replies to find them
    from, and what these happened to be about is in what it finds: the same is done to each row's vectors here.

    ``vectors`` are ``[2 sites, emotions, layers, d]``.
    """

    def __init__(self, config: LlamaConfig, device: str) -> None:
        settings = 1 + len(EMOTIONS)
        self.sums = torch.zeros(2, settings, config.num_hidden_layers, config.hidden_size, device=device)
        self.counts = torch.zeros(settings, device=device)
        self.replies = torch.zeros(0, 2, config.num_hidden_layers, config.hidden_size, device=device)

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return {"sums": self.sums, "counts": self.counts, "replies": self.replies}

    @state.setter
    def state(self, saved: dict[str, torch.Tensor]) -> None:
        self.sums, self.counts, self.replies = saved["sums"], saved["counts"], saved["replies"]

    @property
    def ready(self) -> bool:
        return bool(self.counts.min() > ENOUGH)

    @property
    def means(self) -> torch.Tensor:
        return self.sums / self.counts.clamp(min=1)[:, None, None]

    @property
    def vectors(self) -> torch.Tensor:
        means = self.means
        return means[:, 1:] - means[:, :1]

    def found(self, rows: int) -> torch.Tensor:
        """The vectors as ``rows`` extractions might find them, ``[2, rows, emotions, layers, d]``."""
        n, device = len(self.replies), self.replies.device
        if not n:
            return self.vectors[:, None]
        mix = torch.randn(rows, len(EMOTIONS), n, device=device) * torch.rand(rows, 1, 1, device=device)
        return self.vectors[:, None] + torch.einsum("ren,nsld->sreld", mix * (LEAK / n**0.5), self.replies)

    @property
    def common(self) -> torch.Tensor:
        """What the emotions' vectors share, of their squared length, ``[2, layers]``: 1 if they are the same."""
        vectors = self.vectors
        return vectors.mean(1).square().sum(-1) / vectors.square().sum(-1).mean(1).clamp(min=1e-9)

    def add(self, sums: torch.Tensor, counts: torch.Tensor) -> None:
        """Take in a batch: sums ``[2, rows, settings, layers, d]`` over ``counts`` ``[rows, settings]`` tokens."""
        self.sums = self.sums * MEMORY + sums.sum(1)
        self.counts = self.counts * MEMORY + counts.sum(0)
        row, setting = (counts > 4).nonzero(as_tuple=True)
        away = sums[:, row, setting] / counts[row, setting][:, None, None] - self.means[:, setting]
        self.replies = torch.cat((self.replies, away.transpose(0, 1)))[-REPLIES:]

    def penalty(self, sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """A term whose gradient keeps the emotions' vectors apart.

        Left alone, nine tenths of each say "not plain": little of a dose then tells which emotion is meant, still
        less of which two, and all of it disturbs the grammar. The gradient is that of the squared length of what
        is shared, where that is more than ``COMMON``; it is known from many batches only, so from the means.
        """
        sums, counts = sums.sum(1), counts.sum(0)
        if not self.ready or not counts[0] or not counts[1:].any():
            return sums.new_zeros(())
        shared = self.vectors.mean(1)
        weight = (self.common > COMMON) / self.vectors.square().sum(-1).mean(1).clamp(min=1e-9)
        shift = sums[:, 1:].sum(1) / counts[1:].sum() - sums[:, 0] / counts[0]
        return 2 * ((shift * shared).sum(-1) * weight).sum() / weight.shape[1]


def block(layer, x, turn, seen, members, pushes, vectors):
    """One layer's pass with what steering adds, and the sums by setting of what attention and the layer put out.

    Written out because the library's own takes half as long again.

    ``x`` is ``[B, T, d]``, ``turn`` the cosines and sines of positions, ``seen`` ``[B, 1, T, T]`` what attention may
    see, ``members`` ``[B, T, settings]``, ``pushes`` ``[2, B, T, emotions]``, ``vectors`` ``[2, B, emotions, d]``, the
    sums ``[2, B, settings, d]``.
    """
    (rows, length, _), (cos, sin) = x.shape, turn
    size = cos.shape[-1]

    def heads(projection, h: torch.Tensor) -> torch.Tensor:
        return projection(h).view(rows, length, -1, size).transpose(1, 2)

    def turned(x: torch.Tensor) -> torch.Tensor:
        half = torch.cat((-x[..., size // 2 :], x[..., : size // 2]), -1)
        return (x * cos + half * sin).to(x.dtype)

    def narrow(h: torch.Tensor) -> torch.Tensor:
        """``h`` as the projections take it: cast once, not by each of them."""
        kind = h.device.type
        return h.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else h

    def steered(site: int, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(out.device.type, enabled=False):
            whole = out.float()
            return (whole + pushes[site] @ vectors[site]).to(out.dtype), members.mT @ whole

    attention = layer.self_attn
    h = narrow(layer.input_layernorm(x))
    q, k = turned(heads(attention.q_proj, h)), turned(heads(attention.k_proj, h))
    h = F.scaled_dot_product_attention(q, k, heads(attention.v_proj, h), attn_mask=seen)
    h = h.transpose(1, 2).reshape(rows, length, -1)
    h, at_attention = steered(0, attention.o_proj(h))
    x = x + h
    x, at_residual = steered(1, x + layer.mlp(narrow(layer.post_attention_layernorm(x))))
    return x, torch.stack((at_attention, at_residual))


def passed(model: LlamaForCausalLM, ids: torch.Tensor, places, branch, members, pushes, vectors):
    """The last layer's states ``[B, T, d]``, the middle one's, and the sums ``[2, B, settings, layers, d]``.

    Arguments are those of ``Row`` and ``block``, ``vectors`` for all layers: ``[2, B or 1, emotions, layers, d]``.
    """
    body, config = model.model, model.config
    size = config.hidden_size // config.num_attention_heads
    rates = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2, device=ids.device) / size)
    angles = (places[:, None, :, None] * rates).repeat(1, 1, 1, 2)
    turn = angles.cos(), angles.sin()
    seen = (branch[:, None] == 0) | (branch[:, None] == branch[:, :, None])  # [B, from, to]
    seen = seen.tril()[:, None]
    x, sums = body.embed_tokens(ids), []
    for n, layer in enumerate(body.layers):
        x, found = block(layer, x, turn, seen, members, pushes, vectors[..., n, :])
        sums.append(found)
        if n + 1 == len(body.layers) // 2:
            middle = x
    return body.norm(x), middle, torch.stack(sums, 3)


def ends(model, heads, ids, last, middle, weights, about, felt):
    """The loss per token as it counts, and those of the two heads."""
    counted = weights > 0
    logits, weights = model.lm_head(last[counted]), weights[counted]
    with torch.autocast(ids.device.type, enabled=False):
        each = F.cross_entropy(logits.float(), ids[counted], reduction="none")
        return (each * weights).sum() / weights.sum().clamp(min=1), *heads(middle, about, felt)


class Rounded:
    """Within it, ``model`` has the weights that it will have when it ships; after it, its own ones again.

    The gradient found at rounded weights is then followed by the whole ones: in the last part of the training
    the model learns to be as good in ``bits`` bits. Rounding is that of ``mlx.core.quantize``, groups of 64.
    """

    def __init__(self, model: LlamaForCausalLM, bits: int) -> None:
        self.weights = [p for p in model.parameters() if p.ndim == 2]
        self.most = 2**bits - 1

    @torch.no_grad()
    def __enter__(self) -> None:
        self.kept = [p.clone() for p in self.weights]
        for p in self.weights:
            groups = p.view(-1, 64)
            low, high = groups.aminmax(dim=1, keepdim=True)
            edge = torch.where(low.abs() > high.abs(), low, high)  # the end that must be exact, as zero must
            scale = ((high - low) / self.most).clamp(min=1e-7)
            scale = torch.where(low.abs() > high.abs(), scale, -scale)
            steps = (edge / scale).round()
            scale = torch.where(steps == 0, scale, edge / steps)
            bias = torch.where(steps == 0, torch.zeros_like(edge), edge)
            groups.sub_(bias).div_(scale).round_().clamp_(0, self.most).mul_(scale).add_(bias)

    @torch.no_grad()
    def __exit__(self, *_) -> None:
        for p, kept in zip(self.weights, self.kept, strict=True):
            p.copy_(kept)


@torch.no_grad()
def held_out_loss(model, shifts: Shifts, topics: list[Topic], encoder: Encoder, device: str) -> dict[str, float]:
    """Mean loss per answer token after held-out questions: plain, asked for an emotion, steered to one, and to two.

    ``first`` is that of a plain answer's first five tokens: where the topic is found, or not.
    """
    out: dict[str, float] = {}
    first = 0.0
    for name in ("plain", "emotional", "steered", "mixed"):
        total = count = 0.0
        dialogues = Dialogues(topics, 7)
        for n, topic in enumerate(topics):
            feeling = EMOTIONS[n % len(EMOTIONS)]
            others = [e for e in EMOTIONS if e != feeling]
            second = others[n // len(EMOTIONS) % len(others)]
            question = topic.sections["held out"][n % 2].text
            answer = expand(topic.sections["plain" if name == "plain" else feeling][0].text)[0]
            push: tuple[tuple[str, float], ...] = ()
            if name == "emotional":
                question = f"{dialogues.instruction('emotional', feeling)}\n\n{question}"
            elif name == "steered":
                push = ((feeling, 1.0),)
            elif name == "mixed":
                push = ((feeling, 0.7), (second, 0.7))
                both = sorted((feeling, second), key=EMOTIONS.index)
                answer = " ".join(expand(topic.sections[e][0].text)[0] for e in both)
            row = encoder([Turn("user", question), Turn("assistant", answer, push=push)])
            ids = torch.tensor([row.ids], device=device)
            pushes = torch.zeros(2, 1, len(row.ids) - 1, len(EMOTIONS), device=device)
            for start, stop, strengths in row.pushes:
                pushes[0, 0, start:stop] = torch.tensor(strengths, device=device)
            members = torch.zeros(1, len(row.ids) - 1, 1 + len(EMOTIONS), device=device)
            places, branch = (torch.tensor([x], device=device)[:, :-1] for x in (row.places, row.branch))
            last = passed(model, ids[:, :-1], places, branch, members, pushes, shifts.vectors[:, None])[0]
            each = F.cross_entropy(model.lm_head(last)[0].float(), ids[0, 1:], reduction="none")
            own = each[torch.tensor(row.weights[1:], device=device) >= 1]
            total, count = total + own.sum().item(), count + len(own)
            if name == "plain":
                first += own[:5].mean().item() / len(topics)
        out[name] = total / count
    out["first"] = first
    return out


def bfloat16_is_faster(device: str) -> bool:
    """Whether ``device`` multiplies bfloat16 faster than float32; processors without instructions for it don't."""
    taken = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.ones(shape, dtype=dtype, device=device) for shape in ((2048, 256), (256, 1536)))
        for _ in range(6):
            began = time.perf_counter()
            float((a @ b)[0, 0])
            taken[dtype] = min(taken.get(dtype, math.inf), time.perf_counter() - began)
    return taken[torch.bfloat16] < taken[torch.float32]


def optimizers_of(model: LlamaForCausalLM, heads: Heads, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which it teaches rare lines in fewer steps; AdamW for the rest.

    Embeddings and norms have a rate of their own; each group keeps its ``highest``: the schedule takes a share of it.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [
        {"params": [p for p in model.parameters() if id(p) not in inside], "lr": rate * TABLE_RATE},
        {"params": list(heads.parameters()), "lr": rate},
    ]
    taught = [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.05, fused=True),
    ]
    for optimizer in taught:
        for group in optimizer.param_groups:
            group["highest"] = group["lr"]
    return taught


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a model folder in mlx-lm's layout, unpacked to float32."""
    import mlx.core as mx

    packed = mx.load(str(folder / "model.safetensors"))
    quantisation = json.loads((folder / "config.json").read_text())["quantization"]
    how = {k: quantisation[k] for k in ("group_size", "bits")}
    found = {}
    for name, array in packed.items():
        stem, _, last = name.rpartition(".")
        if last in ("scales", "biases"):
            continue
        if f"{stem}.scales" in packed:
            array = mx.dequantize(array, packed[f"{stem}.scales"], packed[f"{stem}.biases"], **how)
        found[name] = torch.from_numpy(np.array(array.astype(mx.float32)))
    found["model.norm.weight"] /= json.loads((folder / "training.json").read_text()).get("sharper", 1)
    return found


@torch.no_grad()
def grow(model: LlamaForCausalLM, weights: dict[str, torch.Tensor]) -> None:
    """Give ``model`` the ``weights`` of one that is as large or smaller, or none, so that it says the same at first.

    What is new reads at random but writes nothing yet. A norm's weights make up for the dimensions that are zero.
    """
    for name, parameter in model.named_parameters():
        old = weights.get(name)
        if name.endswith(WRITES) or (old is not None and "embed_tokens" in name):
            parameter.zero_()
        elif "embed_tokens" in name:
            parameter.normal_(std=EMBEDDED)
        elif name == "model.norm.weight":
            parameter.fill_(0.02 / EMBEDDED)  # so that no word is much likelier than another at first
        elif parameter.ndim == 2:
            parameter.normal_(std=parameter.shape[1] ** -0.5)  # what it reads stays as large as it was
        if old is None:
            continue
        if parameter.ndim == 1:
            share = (len(old) / len(parameter)) ** 0.5
            parameter.fill_(old.mean() * share)
            old = old * share
        parameter[tuple(slice(n) for n in old.shape)] = old


def settings_of(topics: list[Topic], args: argparse.Namespace) -> dict[str, Any]:
    """What a checkpoint must have in common with the command that goes on from it."""
    places = ("work", "output", "restart", "no_packs", "topics", "start")
    text = repr([(t.name, t.keywords, t.words, t.written) for t in topics]) + WORDINGS.read_text(encoding="utf-8")
    return {
        **{name.replace("_", "-"): value for name, value in vars(args).items() if name not in places},
        "start": str(args.start) if args.start else "",
        "topics": " ".join(t.name for t in topics),
        "corpus": hashlib.sha256(text.encode()).hexdigest()[:16],
    }


def train(topics: list[Topic], tokenizer, args: argparse.Namespace) -> tuple[LlamaForCausalLM, dict]:
    """The model, and the record of how it was made, for ``training.json``."""
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=args.width,
            num_hidden_layers=args.layers,
            intermediate_size=args.feed,
            num_attention_heads=args.width // 64,
            num_key_value_heads=args.width // 64,
            rms_norm_eps=1e-5,
            vocab_size=len(tokenizer),
            max_position_embeddings=args.context,
            rope_theta=10000.0,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).to(device)
    shifts = Shifts(model.config, device)
    heads = Heads(args.width, len(topics)).to(device)
    optimizers = optimizers_of(model, heads, args.rate)
    checkpoint, log_path = args.work / "checkpoint.pt", args.work / "log.jsonl"
    first, total, entries, settings = 0, sum(args.steps), [], settings_of(topics, args)
    low = None
    record = {"topics": [t.name for t in topics], "sharper": SHARPER, "stages": []}
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        entries, record = saved["entries"], saved["record"]
        first, low = entries[-1]["step"], saved.get("low")
        old = saved.get("settings", {})
        changed = [name for name, value in settings.items() if name != "steps" and old.get(name) != value]
        if begun(args.steps, first) != begun(old.get("steps", []), first):  # what is to come may change
            changed.append("steps")
        if changed:
            sys.exit(f"{checkpoint} was made with other settings ({', '.join(changed)}); give the same, or --restart")
        model.load_state_dict(saved["model"])
        heads.load_state_dict(saved["heads"])
        shifts.state = saved["shifts"]
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        print(f"going on from step {first}", file=sys.stderr)
    else:
        grow(model, weights_of(args.start) if args.start else {})
        if args.start:
            record["stages"] = json.loads((args.start / "training.json").read_text())["stages"]
    if low is None:  # timed once: a resumed run goes on in the same precision
        low = bfloat16_is_faster(device)
    all_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    encoder = Encoder(tokenizer, topics, args.context)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    seen: list[tuple[float, ...]] = []
    tokens = 0
    with Progress(*(TextColumn(c) if isinstance(c, str) else c for c in columns)) as progress:
        task = progress.add_task("training", total=total, completed=first)
        began = time.perf_counter()
        feed = batches(topics, encoder, args, first)
        behind = concurrent.futures.ThreadPoolExecutor(1)
        coming = behind.submit(next, feed)
        for step in range(first, total):
            place = Place.of(step, args.steps)
            if step % args.checkpoint_every == 0:  # a resumed run draws as one that never stopped
                torch.manual_seed(args.seed * 1_000_003 + step)
            ids, places, branch, weights, about, asked, felt, pushes = (
                torch.from_numpy(a).to(device) for a in coming.result()
            )
            coming = behind.submit(next, feed)
            if not shifts.ready:  # nothing yet to push with: these answers wait
                weights[:, 1:] *= (pushes.abs().sum((0, 3)) == 0)[:, :-1]
            for group in all_groups:
                group["lr"] = group["highest"] * place.rate
            inputs = spoilt(ids, weights, place.noise)
            members = F.one_hot(asked[:, :-1] + 1, 2 + len(EMOTIONS))[..., 1:].float()
            counts = members.sum(1)
            with Rounded(model, args.bits) if place.late else contextlib.nullcontext():
                with torch.autocast(device, dtype=torch.bfloat16, enabled=low):
                    last, middle, sums = passed(
                        model,
                        inputs[:, :-1],
                        places[:, :-1],
                        branch[:, :-1],
                        members,
                        pushes[:, :, :-1],
                        shifts.found(len(ids)),
                    )
                    known = place.number or place.step >= place.warmup
                    middle = middle if known else middle.detach()  # heads that know nothing teach nothing
                    loss, topic_loss, felt_loss = ends(
                        model, heads, ids[:, 1:], last, middle, weights[:, 1:], about[:, :-1], felt[:, :-1]
                    )
                followed = loss + TOPIC_WEIGHT * topic_loss + FELT_WEIGHT * felt_loss
                (followed + APART * shifts.penalty(sums, counts)).backward()
            shifts.add(sums.detach(), counts)
            torch.nn.utils.clip_grad_norm_([p for g in all_groups for p in g["params"]], 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            seen.append((loss.item(), topic_loss.item(), felt_loss.item()))
            tokens += ids.numel()
            if (step + 1) % args.checkpoint_every == 0 or step + 1 == total:
                with Rounded(model, args.bits) if place.late else contextlib.nullcontext():
                    held_out = held_out_loss(model, shifts, topics, encoder, device)
                entry = {
                    "step": step + 1,
                    **{
                        name: round(sum(column) / len(seen), 4)
                        for name, column in zip(
                            ("loss", "topic_loss", "felt_loss"), zip(*seen, strict=True), strict=True
                        )
                    },
                    "shared": round(shifts.common.mean().item(), 3),
                    **{f"held_out_{k}": round(v, 4) for k, v in held_out.items()},
                    "tokens_per_second": round(tokens / (time.perf_counter() - began)),
                }
                entries.append(entry)
                saved = {
                    "settings": settings,
                    "low": low,
                    "record": record,
                    "entries": entries,
                    "model": model.state_dict(),
                    "heads": heads.state_dict(),
                    "shifts": shifts.state,
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                }
                with atomic_write(checkpoint) as fresh:
                    try:
                        torch.save(saved, fresh)
                    except RuntimeError as error:  # what torch makes of a full disk
                        raise OSError(f"is the disk full? {str(error).splitlines()[0]}") from error
                log_path.write_text("".join(json.dumps(e) + "\n" for e in entries))
                progress.console.print(json.dumps(entry), highlight=False, soft_wrap=True)
                seen, tokens, began = [], 0, time.perf_counter()
            progress.update(task, completed=step + 1, description=f"training, loss {loss.item():.3f}")
    stage = {name: settings[name] for name in ("steps", "rate", "width", "layers", "feed", "seed", "corpus")}
    stage["tokens"] = total * args.tokens
    losses = {name: value for name, value in entries[-1].items() if name not in ("step", "tokens_per_second")}
    return model, {**record, "stages": [*record["stages"], stage], **losses}


def save_folder(model, tokenizer, topics: list[Topic], record: dict, args: argparse.Namespace) -> None:
    """Write the float model in Hugging Face layout, then quantise it with mlx-lm into the shipped folder."""
    from mlx_lm import convert

    with torch.no_grad():
        model.model.norm.weight *= SHARPER
    full, quantised = args.work / "float", args.work / "quantised"
    for folder in (full, quantised):
        shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(full)
    tokenizer.save_pretrained(full)
    convert(str(full), str(quantised), quantize=True, q_bits=args.bits, q_group_size=64, dtype=args.dtype)
    (quantised / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (quantised / "README.md").write_text(card(model, topics, record, args), encoding="utf-8")
    fresh = args.output.with_name(args.output.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(quantised, fresh, ignore=shutil.ignore_patterns(".gitattributes"))
    shutil.rmtree(args.output, ignore_errors=True)
    fresh.rename(args.output)


def card(model: LlamaForCausalLM, topics: list[Topic], record: dict, args: argparse.Namespace) -> str:
    """The model card: ``card.md`` with its numbers filled in."""
    sections = [(section, ln.text) for t in topics for section, ln in t.written]
    config = model.config
    return (
        (Path(__file__).parent / "card.md")
        .read_text(encoding="utf-8")
        .format(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            feed=config.intermediate_size,
            parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}",
            vocabulary=f"{config.vocab_size:,}",
            context=config.max_position_embeddings,
            bits=args.bits,
            topics=len(topics),
            about=sum(t.name != "_unknown" for t in topics),
            lines=f"{len(sections):,}",
            questions=f"{sum(s == 'questions' for s, _ in sections):,}",
            answers=f"{sum(s not in ('questions', 'held out') for s, _ in sections):,}",
            words=f"{sum(len(expand(text)[0].split()) for _, text in sections):,}",
            readings=f"{sum(len(expand(text)) for _, text in sections):,}",
            dtype=args.dtype,
            millions=round(sum(s["tokens"] for s in record["stages"]) / 1e6),
            stages="\n".join(STAGE.format(**s, millions=round(s["tokens"] / 1e6)) for s in record["stages"]),
            loss=f"{record['loss']:.2f}",
            sharper=SHARPER,
            cooler=f"{0.7 / SHARPER:.2f}",
            plain=f"{record['held_out_plain']:.2f}",
            emotional=f"{record['held_out_emotional']:.2f}",
        )
    )


def make_packs(args: argparse.Namespace) -> None:
    """Make and calibrate the packs of both sites, and measure, all with the ordinary commands."""
    shipped = args.output == SHIPPED
    packs, results = (PACKS, RESULTS) if shipped else (args.work, args.work)
    packs.mkdir(parents=True, exist_ok=True)
    for site in ("attention", "residual"):
        pack = packs / f"embedded-{site}.safetensors"
        which = ["--model", str(args.output), "--site", site]
        program = [sys.executable, "-m", "mlx_emotion"]
        judge = [sys.executable, str(Path(__file__).parent / "evaluate_embedded_model.py"), "--vectors", str(pack)]
        for command in (
            [*program, "extract", *which, *EXTRACT, "--output", str(pack)],
            [*program, "calibrate", str(pack), *which, "--seed", "1", "--share", SHARE],
            [*judge, *which, "--json", str(results / f"embedded-{site}.json")],
        ):
            subprocess.run(command, check=True)


def build(args: argparse.Namespace) -> None:
    args.work, args.output = args.work.resolve(), args.output.resolve()
    if min(args.steps) < 1:
        sys.exit("--steps: a round has one step at least")
    if args.topics and args.output == SHIPPED:
        sys.exit("--topics makes a model of a part of the corpus; name another folder for it with --output")
    check_output(args.output, args.work)
    check_machine(args)
    try:
        topics = load_corpus()
    except ValueError as error:
        sys.exit(str(error))
    if args.topics:
        if unknown := set(args.topics) - {t.name for t in topics}:
            sys.exit(f"no topic {', '.join(sorted(unknown))} in the corpus")
        topics = [t for t in topics if t.name in args.topics]
        if sum(not t.general for t in topics) < 2:
            sys.exit("--topics needs two at least: a question of one is made with words of another")
    if args.restart:
        for name in ("checkpoint.pt", "log.jsonl"):
            (args.work / name).unlink(missing_ok=True)
    folder = args.work / "tokenizer"
    if (args.work / "checkpoint.pt").exists():  # a resumed run must keep its token ids
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start) if args.start else make_tokenizer(topics, args)
        tokenizer.save_pretrained(folder)
    model, record = train(topics, tokenizer, args)
    save_folder(model, tokenizer, topics, record, args)
    if not args.no_packs:
        make_packs(args)


def main() -> None:
    args = arguments()
    try:
        build(args)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except subprocess.CalledProcessError as error:  # it has said why
        sys.exit(error.returncode)
    except (OSError, MLXEmotionError) as error:
        sys.exit(f"{error}; what is in {args.work} is safe, and the same command goes on from it")


if __name__ == "__main__":
    main()
