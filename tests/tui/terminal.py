"""Programs in a pseudo-terminal, and a model that goes on talking: for tests and benchmarks of the app. POSIX only."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from mlx_emotion import Reply

CHAT = [sys.executable, "-m", "mlx_emotion", "chat"]
MODES = {
    "the other screen": (b"?1049h", b"?1049l"),
    "the mouse": (b"?1000h", b"?1000l"),
    "the mouse's moves": (b"?1003h", b"?1003l"),
    "bracketed paste": (b"?2004h", b"?2004l"),
    "no cursor": (b"?25l", b"?25h"),
}
"""What the app asks of a terminal, and how that is taken back."""
LONGEST = 200
"""Bytes that a pattern of ``Terminal.until`` may match."""


class Terminal:
    """A program in a pseudo-terminal; ``seen`` is what it has written since that was cleared."""

    def __init__(self, *command: str, columns: int = 140, rows: int = 40) -> None:
        self.parent, self.child = pty.openpty()
        ioctl(self.child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self.child)
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), self.child)
        self.seen = bytearray()
        self.began = time.perf_counter()
        self.process = subprocess.Popen(command, env=environment, **streams)

    def read(self, seconds: float) -> bool:
        """Wait so long for something to come; ``False`` if nothing did."""
        if not select.select([self.parent], [], [], seconds)[0]:
            return False
        self.seen += os.read(self.parent, 1 << 16)
        return True

    def rest(self, seconds: float) -> None:
        """Read on for so long."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            self.read(left)

    def until(self, pattern: bytes, seconds: float = 300) -> float:
        """Wait for what matches ``pattern``; returns the seconds since the start."""
        end, begin = time.perf_counter() + seconds, 0
        while not re.compile(pattern).search(self.seen, begin):
            if time.perf_counter() > end or (self.process.poll() is not None and not self.read(0)):
                self.give_up(f"{pattern!r} never came; last: {bytes(self.seen[-2000:])!r}")
            begin = max(0, len(self.seen) - LONGEST)
            self.read(0.02)
        return time.perf_counter() - self.began

    def write(self, text: str) -> None:
        os.write(self.parent, text.encode())

    def wait(self, seconds: float = 300) -> int:
        """Wait for the end; returns the exit status."""
        end = time.perf_counter() + seconds
        while self.process.poll() is None:
            if time.perf_counter() > end:
                self.give_up("it does not end")
            self.read(0.1)
        while self.read(0.2):
            pass
        return self.process.returncode

    def kill(self) -> None:
        """End it as the system would that has no memory left."""
        self.process.kill()
        self.process.wait()

    def give_up(self, why: str) -> NoReturn:
        self.kill()  # nobody else would end it
        raise TimeoutError(why)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        os.close(self.parent)
        os.close(self.child)

    def quit(self, key: str = "\x11") -> None:
        """Leave it with ``key``."""
        self.write(key)
        self.wait()
        self.close()

    @property
    def painted(self) -> str:
        """All words that were painted, without colours and places."""
        return re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", self.seen).decode(errors="replace")

    @property
    def left(self) -> list[str]:
        """What the program has not given back of the terminal."""
        found = [name for name, (on, off) in MODES.items() if not self.seen.rfind(on) < self.seen.rfind(off)]
        return found + ["settings"] * (termios.tcgetattr(self.child) != self.before)


def endless(folder: Path) -> list[str]:
    """Options for the embedded model, copied to ``folder`` without its end mark: it says as much as is asked for."""
    import mlx.core as mx

    from mlx_emotion.models import embedded_path
    from mlx_emotion.vectors import shipped_packs

    if not folder.exists():
        shutil.copytree(embedded_path(), folder)
        config = json.loads((folder / "config.json").read_text())
        weights = mx.load(str(folder / "model.safetensors"))
        pieces = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        # After pages of its own it would say line ends only.
        line_ends = [number for piece, number in pieces.items() if "Ċ" in piece]
        for name in ("scales", "biases"):  # embeddings are tied: what is zero here is not said
            weights[f"model.embed_tokens.{name}"][mx.array([config["eos_token_id"], *line_ends])] = 0
        mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
        # What is zero is still said where all else is less: the end is a token that training has driven far down.
        changes = {
            "config.json": {"eos_token_id": config["pad_token_id"], "max_position_embeddings": 8192},
            "generation_config.json": {"eos_token_id": config["pad_token_id"]},
            "tokenizer_config.json": {"eos_token": "<|endoftext|>"},
        }
        for name, change in changes.items():
            (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
    return ["--model", str(folder), "--vectors", str(shipped_packs() / "embedded-attention.safetensors"), "--force"]


def half_written(terminal: Terminal, seconds: float = 300) -> Reply:
    """Wait until the latest reply is stored with some of its text and not ended; returns it."""
    from mlx_emotion import Store

    store, end = Store(), time.perf_counter() + seconds
    try:
        while time.perf_counter() < end:
            terminal.rest(0.05)
            for conversation in store.conversations()[:1]:
                for exchange in store.exchanges(conversation.id)[-1:]:
                    reply = exchange.reply
                    if reply is not None and len(reply.text) > 40 and reply.state == "writing":
                        return reply
    finally:
        store.close()
    return terminal.give_up("no reply is stored while it is written")
