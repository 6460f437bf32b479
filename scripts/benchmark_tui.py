"""How quick the terminal app is: the numbers in `docs/results.md`.

    python scripts/benchmark_tui.py [--json FILE]

Runs the installed app in a pseudo-terminal of 140x40 with the embedded model, in a home of its own, and
measures what a user would: the time from a key to its paint, not that of a function. Close what else
uses the machine. POSIX only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.tui.terminal import CHAT, Terminal, endless, half_written

PROMPTS = ["I heard a noise upstairs.", "What should I cook?", "My friend is late.", "Tell me about the sea."]
FEELINGS = ["anger", "fear", "joy", "sadness", "disgust"]
READY = rb"\d-bit"
"""The status line tells the model that is loaded."""
BAR, ROW = 112, 3
"""A column within the first emotion's bar, and its row, counted from 1."""
LOGGED = """
import sys, time
from mlx_emotion import Chat, Token
from mlx_emotion.cli import main
from mlx_emotion.tui.panel import Bars

stream, drag, log = Chat.stream, Bars._drag, open(sys.argv.pop(1), "w", buffering=1)

def logged(*arguments, **options):
    for event in stream(*arguments, **options):
        if isinstance(event, Token):
            print(time.monotonic(), event.index, file=log)
        yield event

def moved(self, event):
    print(time.monotonic(), "moved", file=log)
    drag(self, event)

Chat.stream, Bars._drag = logged, moved
sys.exit(main())
"""
"""The program, which also writes down when each token came and when a bar was moved."""


def talker() -> list[str]:
    """Options for a model whose replies are as long as asked for."""
    return endless(Path(os.environ["MLX_EMOTION_HOME"]) / "endless")


def p95(values: list[float]) -> float:
    return sorted(values)[len(values) * 95 // 100]


def cpu_seconds(process: int) -> float:
    """Processor time that a process has used."""
    stat = Path(f"/proc/{process}/stat")
    if stat.exists():
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    minutes, _, seconds = subprocess.check_output(["ps", "-o", "time=", "-p", str(process)], text=True).rpartition(":")
    parts = [int(p) for p in minutes.strip().split(":")]
    return float(seconds) + 60 * sum(p * 60**n for n, p in enumerate(reversed(parts)))


def start() -> dict[str, float]:
    """Cold start, and what the app costs while nothing happens."""
    terminal = Terminal(*CHAT)
    paint = terminal.until(b"mlx-emotion")
    usable = terminal.until(READY)
    terminal.rest(5)
    before = cpu_seconds(terminal.process.pid)
    idle = time.perf_counter()
    terminal.rest(10)
    used = (cpu_seconds(terminal.process.pid) - before) / (time.perf_counter() - idle)
    terminal.quit()
    return {"first paint, s": paint, "usable prompt, s": usable, "idle, share of a core": used}


def latency() -> dict[str, float]:
    """From a key to its paint, while a reply is being written: the first key after Enter, and others."""
    terminal = Terminal(*CHAT, *talker(), "--max-tokens", "300")
    terminal.until(READY)
    first: list[float] = []
    others: list[float] = []
    while len(first) < 20:
        terminal.write("Tell me a long story.")
        terminal.rest(0.2)
        terminal.write("\r")
        for count in range(1, 5):
            terminal.seen.clear()
            sent = time.perf_counter()
            terminal.write("§")
            terminal.until(("§" * count).encode())
            (first if count == 1 else others).append(time.perf_counter() - sent)
            terminal.rest(sent + 0.2 - time.perf_counter())
        terminal.write("\x15\x1b")  # empties the line, ends the reply
        terminal.rest(0.8)
    terminal.quit()
    return {
        "key to paint, median, ms": 1e3 * statistics.median(first + others),
        "p95, ms": 1e3 * p95(first + others),
        "p95, first after Enter, ms": 1e3 * p95(first),
        "p95, others, ms": 1e3 * p95(others),
    }


def replies() -> dict[str, float]:
    """Replies of 300 tokens in the app and in ``--plain``, in turn: from Enter to the end that one sees."""
    options = [*talker(), "--seed", "7", "--max-tokens", "300"]
    app, plain = Terminal(*CHAT, *options), Terminal(*CHAT, "--plain", *options)
    app.until(READY)
    plain.until(b"neutral> ")

    def wait(terminal: Terminal, prompt: str, *patterns: bytes) -> float:
        terminal.write(prompt)
        terminal.rest(0.5)
        began = time.perf_counter()
        terminal.write("\r")
        for pattern in patterns:
            terminal.seen.clear()
            terminal.until(pattern)
        seconds = time.perf_counter() - began
        terminal.rest(0.5)  # what it paints after that is not the next one's
        return seconds

    took = []
    for n, prompt in enumerate(PROMPTS * 2):
        both = {}
        for terminal in (app, plain) if n % 2 else (plain, app):
            # While it speaks the header has both numbers, then the second alone.
            patterns = (rb"\d tokens", rb"(?<!tokens) \xc2\xb7 \d+ tok/s") if terminal is app else (b"neutral> ",)
            both[terminal] = wait(terminal, prompt, *patterns)
        took.append((both[app], both[plain]))
    app.quit()
    plain.quit("\x04")
    return {
        "300 tokens in the app, s": statistics.median(a for a, _ in took),
        "300 tokens plain, s": statistics.median(p for _, p in took),
        "ratio, median": statistics.median(a / p for a, p in took),
    }


def dragging() -> dict[str, float]:
    """How many tokens after a bar was moved the reply feels otherwise: by the app's event, and by the mouse's bytes."""
    from mlx_emotion import Store

    log = Path(os.environ["MLX_EMOTION_HOME"]) / "tokens"
    options = [*talker(), "--no-guard", "--max-tokens", "6000"]
    terminal = Terminal(sys.executable, "-c", LOGGED, str(log), "chat", *options)
    terminal.until(READY)
    terminal.write("Tell me a long story.\r")
    terminal.until(rb"\d tokens")
    sent = []

    def spoken() -> int:
        return log.read_bytes().count(b"\n")

    for n in range(20):
        before, column = spoken(), BAR + 3 * (n % 4)
        sent.append(time.monotonic())
        terminal.write(f"\x1b[<{32 if n % 4 else 0};{column};{ROW}M")  # pressed, then moved
        while spoken() < before + 30 and time.monotonic() < sent[-1] + 60:  # each change has tokens of its own
            terminal.rest(0.1)
        if n % 4 == 3:
            terminal.write(f"\x1b[<0;{column};{ROW}m")
    terminal.quit()
    rows = [line.split() for line in log.read_text().splitlines()]
    came = [(float(at), int(index)) for at, index in rows if index != "moved"]
    moved = [float(at) for at, index in rows if index == "moved"]
    store = Store()
    reply = store.exchanges(store.find().id)[-1].reply
    store.close()
    changes = [index for index, _ in reply.timeline[1:]]
    if not len(changes) == len(moved) == len(sent):
        raise SystemExit(f"{len(sent)} movements, {len(moved)} events and {len(changes)} changes of feeling")

    def later(times: list[float]) -> list[int]:
        """Tokens from the last one that had come at each of ``times`` to the change."""
        return [change - max(i for at, i in came if at <= when) for change, when in zip(changes, times)]

    return {
        "tokens after the event, median": statistics.median(later(moved)),
        "most": max(later(moved)),
        "after the bytes, median": statistics.median(later(sent)),
        "after the bytes, most": max(later(sent)),
    }


def killed() -> dict[str, str]:
    """Whether a conversation is there after kill -9 in mid-reply, with what was said, marked as cut off."""
    terminal = Terminal(*CHAT, *talker(), "--max-tokens", "6000")
    terminal.until(READY)
    terminal.write(f"{PROMPTS[0]}\r")
    words = re.findall(r"[a-z]+", half_written(terminal).text)
    terminal.kill()
    terminal.close()
    terminal = Terminal(*CHAT, *talker(), "--resume")
    terminal.until(READY)
    terminal.rest(2)
    there = all(text in terminal.painted for text in (PROMPTS[0], max(words[-8:], key=len), "cut off"))
    terminal.quit()
    return {"reopened after kill -9": "yes" if there else "no"}


def comparing() -> dict[str, float]:
    """Six feelings at once, against mlx_lm.batch_generate on the same six prompts without steering."""
    import mlx_emotion

    model = mlx_emotion.load()
    chosen = [f for f in FEELINGS if f in model.emotions]
    tokens = 64
    chat = model.chat(max_tokens=tokens, temperature=0.6)

    def unending(voice) -> None:  # equal lengths, so that equal work is compared
        voice.loaded.tokenizer._eos_token_ids = set()

    def plain(voice) -> float:
        from mlx_lm import batch_generate
        from mlx_lm.sample_utils import make_sampler

        template = voice.loaded.template
        prompt = template.encode(template.render([{"role": "user", "content": PROMPTS[0]}]))
        began = time.perf_counter()
        batch_generate(
            voice.loaded.model,
            voice.loaded.tokenizer,
            [prompt] * (len(chosen) + 1),
            max_tokens=tokens,
            sampler=make_sampler(0.6, 0.9),
        )
        return time.perf_counter() - began

    def steered() -> float:
        began = time.perf_counter()
        for _ in chat.compare(PROMPTS[0], ["neutral", *chosen], seed=1):
            pass
        return time.perf_counter() - began

    model.run(unending)
    rounds = [(steered(), model.run(plain)) for _ in range(6)][1:]
    ours, theirs = (statistics.median(r[n] for r in rounds) for n in (0, 1))
    return {"feelings": len(chosen) + 1, "compare, s": ours, "batch_generate, s": theirs, "ratio": ours / theirs}


def long_conversation() -> dict[str, float]:
    """2,000 messages: time to open, and the longest pause while scrolling up and down."""
    from mlx_emotion import Exchange, Reply, Store
    from mlx_emotion.tui.app import EmotionApp

    text = (
        "Some **words** of a reply.\n\n- a list\n- of two\n\nAnd a line that is long enough to be wrapped, number {}."
    )
    store = Store()
    exchanges = [Exchange(f"message {n}").with_reply(Reply(text.format(n), "stop", tokens=40)) for n in range(1000)]
    id_ = store.fork("embedded", "long", exchanges)
    store.close()

    class Nothing(Exception):
        pass

    def load(name: str | None):
        raise Nothing

    async def run() -> dict[str, float]:
        app = EmotionApp(load=load)
        async with app.run_test(size=(140, 40)) as pilot:
            await pilot.pause(0.5)
            began = time.perf_counter()
            await app.talk.open(id_)
            await pilot.pause()
            opened = time.perf_counter() - began
            pauses: list[float] = []

            async def watch() -> None:
                while True:
                    asked = time.perf_counter()
                    await asyncio.sleep(0.002)
                    pauses.append(time.perf_counter() - asked - 0.002)

            task = asyncio.create_task(watch())
            for step in [-10] * 150 + [10] * 150:
                app.transcript.scroll_relative(y=step, animate=False)
                await asyncio.sleep(0.03)
            task.cancel()
            ordered = sorted(pauses)
            return {
                "open, s": opened,
                "scroll pause, p99, ms": 1e3 * ordered[len(ordered) * 99 // 100],
                "longest, ms": 1e3 * ordered[-1],
            }

    return asyncio.run(run())


PARTS = (start, latency, replies, dragging, killed, comparing, long_conversation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[w.__name__ for w in PARTS], help="One part alone.")
    parser.add_argument("--json", metavar="FILE", help="Also write the numbers there.")
    options = parser.parse_args()
    found: dict[str, dict[str, float] | dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as home:
        os.environ["MLX_EMOTION_HOME"] = home  # the user's conversations and settings are no part of this
        for work in PARTS:
            if options.only not in (None, work.__name__):
                continue
            found[work.__name__] = work()
            for name, value in found[work.__name__].items():
                shown = value if isinstance(value, str) else f"{value:.3g}"
                print(f"{work.__name__:20}{name:32}{shown}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
