"""Draw docs/screenshots/*.svg: the real app with the embedded model. `python scripts/screenshots.py`"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["MLX_EMOTION_HOME"] = tempfile.mkdtemp()  # before anything asks where files live

from mlx_emotion.tui.app import EmotionApp  # noqa: E402
from mlx_emotion.tui.settings import Settings  # noqa: E402
from tests.tui.fakes import answered, ready, say, text_of, until  # noqa: E402


async def main() -> None:
    folder = ROOT / "docs" / "screenshots"
    app = EmotionApp(settings=Settings(animation=False), options={"max_tokens": 80}, feeling="joy", seed=3)
    async with app.run_test(size=(110, 32)) as pilot:
        await ready(pilot)
        await say(pilot, "My sister is coming for dinner.")
        await answered(pilot, 1)
        app.feelings.set_named("fear:0.8")
        await say(pilot, "I heard a noise upstairs.")
        await answered(pilot, 2)
        await until(pilot, lambda: "palette" in text_of(app))  # the footer is painted later
        app.save_screenshot("chat.svg", str(folder))
        await pilot.press(*"Tell me about the sea.")
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "6 chosen" in text_of(app))
        await pilot.press("enter")
        await until(pilot, lambda: getattr(app.screen, "running", None) is False, seconds=120)
        app.save_screenshot("compare.svg", str(folder))


asyncio.run(main())
