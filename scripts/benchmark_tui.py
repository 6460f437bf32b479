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
import pty
import re
import select
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from fcntl import ioctl
from pathlib import Path

PROMPTS = ["I heard a noise upstairs.", "What should I cook?", "My friend is late.", "Tell me about the sea."]
FEELINGS = ["anger", "fear", "joy", "sadness", "disgust"]


class Terminal:
    """The app in a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.fd, child = pty.openpty()
        ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
        command = [sys.executable, "-m", "mlx_emotion", "chat", *arguments]
        self.began = time.perf_counter()
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment)
        os.close(child)
        self.seen = b""

    def read(self, seconds: float) -> bytes:
        if not select.select([self.fd], [], [], seconds)[0]:
            return b""
        try:
            new = os.read(self.fd, 1 << 16)
        except OSError:  # Linux: the other side is closed
            return b""
        self.seen += new
        return new

    def until(self, pattern: bytes, seconds: float = 120) -> float:
        """Seconds since the start when ``pattern`` was painted."""
        end = time.perf_counter() + seconds
        while not re.search(pattern, self.seen):
            if time.perf_counter() > end:
                raise SystemExit(f"{pattern!r} never came")
            self.read(0.02)
        return time.perf_counter() - self.began

    def write(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def close(self) -> None:
        self.write("\x11")
        while self.process.poll() is None:
            self.read(0.1)
        os.close(self.fd)


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
    terminal = Terminal()
    paint = terminal.until(b"mlx-emotion")
    usable = terminal.until(b"4-bit")
    settled = time.perf_counter() + 5
    while time.perf_counter() < settled:
        terminal.read(0.5)
    before = cpu_seconds(terminal.process.pid)
    idle = time.perf_counter()
    while time.perf_counter() - idle < 10:
        terminal.read(0.5)
    used = (cpu_seconds(terminal.process.pid) - before) / (time.perf_counter() - idle)
    terminal.close()
    return {"first paint, s": paint, "usable prompt, s": usable, "idle, share of a core": used}


def endless() -> list[str]:
    """Options for the embedded model with another end mark, so that its replies are as long as asked for."""
    from mlx_emotion.models import embedded_path
    from mlx_emotion.vectors import shipped_packs

    folder = Path(os.environ["MLX_EMOTION_HOME"]) / "endless"
    if not folder.exists():
        shutil.copytree(embedded_path(), folder)
        for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            held = json.loads((folder / name).read_text())
            held |= {"eos_token_id": 0} if "eos_token_id" in held else {"eos_token": "<|endoftext|>"}
            (folder / name).write_text(json.dumps(held))
    return ["--model", str(folder), "--vectors", str(shipped_packs() / "embedded-attention.safetensors"), "--force"]


def latency() -> dict[str, float]:
    """From a key to its paint, while a reply is being written."""
    terminal = Terminal(*endless(), "--max-tokens", "300")
    terminal.until(b"4-bit")
    times: list[float] = []
    mark = "§"
    while len(times) < 60:
        terminal.write("Tell me a long story.")
        terminal.read(0.2)
        terminal.write("\r")
        for _ in range(4):
            terminal.seen = b""
            sent = time.perf_counter()
            terminal.write(mark)
            while mark.encode() not in terminal.seen:
                terminal.read(0.001)
            times.append(time.perf_counter() - sent)
            rest = sent + 0.2
            while time.perf_counter() < rest:
                terminal.read(0.02)
        terminal.write("\x15\x1b")  # empties the line, ends the reply
        rest = time.perf_counter() + 0.8
        while time.perf_counter() < rest:
            terminal.read(0.1)
    terminal.close()
    return {
        "key to paint, median, ms": 1e3 * statistics.median(times),
        "p95, ms": 1e3 * sorted(times)[len(times) * 95 // 100],
    }


def replies() -> dict[str, float]:
    """Replies of 300 tokens in the app and without it: the same messages, the same seed."""
    from mlx_emotion import Store

    options = endless()
    terminal = Terminal(*options, "--seed", "7", "--max-tokens", "300")
    terminal.until(b"4-bit")
    store, messages = Store(), PROMPTS
    before = {c.id for c in store.conversations()}
    for count, prompt in enumerate(messages, start=1):
        terminal.write(prompt)
        terminal.read(0.2)
        terminal.write("\r")
        while True:
            terminal.read(0.05)
            found = [c for c in store.conversations() if c.id not in before]
            done = [e.reply for e in store.exchanges(found[0].id) if e.reply] if found else []
            if len(done) == count and done[-1].state != "writing":
                break
        rest = time.perf_counter() + 0.5  # until the app has painted the end, too
        while time.perf_counter() < rest:
            terminal.read(0.1)
    terminal.close()
    in_app = [(r.tokens, r.tokens / r.tokens_per_second) for r in done if r.tokens_per_second]
    code = (
        "import sys, json, mlx_emotion\n"
        "c = mlx_emotion.load(sys.argv[2], vectors=sys.argv[3], force=True).chat(max_tokens=300)\n"
        "d = [list(c.stream(p, seed=7))[-1] for p in json.loads(sys.argv[1])]\n"
        "print(json.dumps([[x.tokens, x.tokens / x.tokens_per_second] for x in d if x.tokens_per_second]))"
    )
    command = [sys.executable, "-c", code, json.dumps(messages), options[1], options[3]]
    plain = json.loads(subprocess.check_output(command, text=True))
    rate = [sum(s for _, s in rows) / sum(t for t, _ in rows) for rows in (in_app, plain)]
    return {"300 tokens in the app, s": 300 * rate[0], "300 tokens plain, s": 300 * rate[1], "ratio": rate[0] / rate[1]}


def comparing() -> dict[str, float]:
    """Six feelings at once, against mlx_lm.batch_generate on the same six prompts without steering."""
    import mlx_emotion

    model = mlx_emotion.load()
    chosen = [f for f in FEELINGS if f in model.emotions]
    tokens = 64
    chat = model.chat(max_tokens=tokens, temperature=0.6)

    def endless(voice) -> None:  # equal lengths, so that equal work is compared
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

    model.run(endless)
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


PARTS = (start, latency, replies, comparing, long_conversation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[w.__name__ for w in PARTS], help="One part alone.")
    parser.add_argument("--json", metavar="FILE", help="Also write the numbers there.")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("MLX_EMOTION_HOME", home)
        for work in PARTS:
            if options.only not in (None, work.__name__):
                continue
            found[work.__name__] = work()
            for name, value in found[work.__name__].items():
                print(f"{work.__name__:20}{name:30}{value:.3g}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
