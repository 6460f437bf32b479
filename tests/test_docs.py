"""The programs in docs/python.md do what the page says of them."""

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest

import mlx_emotion
from mlx_emotion.vectors import EmotionVectors, PackInfo

PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
FACE, ASYNC, STORE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def model(tiny_model_path):
    model = mlx_emotion.load(str(tiny_model_path))
    rng = np.random.default_rng(1)
    vectors = {n: rng.standard_normal((model.identity.layers, model.identity.width)) * 0.2 for n in ("fear", "joy")}
    entries = {n: {"instructions": ["x"], "count": 2, "scale": 1.0} for n in vectors}
    model.use(EmotionVectors(vectors, PackInfo(model.identity, "attention", entries, base_scale=1.0)))
    return model


@pytest.fixture
def names(model):
    chat = model.chat("fear", max_tokens=12)
    return {"mlx_emotion": mlx_emotion, "re": re, "asyncio": asyncio, "model": model, "chat": chat}


def test_a_face_and_a_voice(names, model):
    faces, said = [], []
    chat = names["chat"]

    def move(*point):
        faces.append(point)
        if len(faces) == 1:
            chat.feel({"joy": 0.5})

    exec(FACE, names | {"move_face": move, "say": said.append}, there := {})
    there["speak_and_move"](model, chat, "hello")
    assert faces[0] == model.feeling("fear").point
    assert "".join(said).split() == chat.messages[-1]["content"].split()


def test_asyncio(names):
    exec(ASYNC, names, there := {})

    async def all_of(message):
        return [event async for event in there["replies"](names["chat"], message)]

    events = asyncio.run(all_of("hello"))
    assert isinstance(events[-1], mlx_emotion.Done)
    with pytest.raises(mlx_emotion.UsageError, match="empty"):
        asyncio.run(all_of(" "))

    async def first_of(message):
        events = there["replies"](names["chat"], message)
        event = await anext(events)
        await events.aclose()
        return event

    assert isinstance(asyncio.run(first_of("hello")), mlx_emotion.Token)
    names["chat"].reset()  # refused while a reply is being written


def test_a_conversation_that_stays(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names["chat"].feel("joy:0.5")
    exec(STORE, names)
    first, second = names["chat"].messages[:2], names["chat"].messages[2:]  # said, and then read back
    assert [m["role"] for m in first] == ["user", "assistant"]
    assert first == second
