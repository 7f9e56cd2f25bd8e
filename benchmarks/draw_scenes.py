"""How fast emoji scenes are composed, captioned and drawn on one core: a table with its hardware stamp.

    python benchmarks/draw_scenes.py [--size 128] [--scenes 1024] [--batch 64] [--objects 104]

Times are the processor's time of this process, so other work on the machine does not count; the best of
five rounds is shown.
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_scenes import EmojiScenes

ROUNDS = 5


def per_second(count: int, work: Callable[[], object]) -> float:
    """Best rate of several rounds, in items per second of processor time."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return count / best


def processor() -> str:
    """The processor's name as the system gives it."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how fast emoji scenes are drawn on one core.")
    parser.add_argument("--size", type=int, default=128, help="pixels per side")
    parser.add_argument("--scenes", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--objects", type=int, default=104)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = EmojiScenes(SceneConfig(objects=options.objects))
    count, batch = options.scenes, options.batch
    scenes = [source.scene(index) for index in range(count)]

    def compose() -> None:
        for index in range(count):
            source.scene(index)

    def caption() -> None:
        for index, scene in enumerate(scenes):
            source.captions(scene, index)

    def draw() -> None:
        for start in range(0, count, batch):
            source.draw(scenes[start : start + batch], size=options.size)

    draw()
    table = Table(
        "step", "per second", title=f"Emoji scenes, {options.size} px, batches of {batch}, one core"
    )
    table.add_row("scene", f"{per_second(count, compose):,.0f}")
    table.add_row("caption of a scene", f"{per_second(count, caption):,.0f}")
    table.add_row(
        "caption with its scene", f"{per_second(count, lambda: list(source.captions_only(0, count))):,.0f}"
    )
    table.add_row("picture", f"{per_second(count, draw):,.0f}")
    console = Console()
    console.print(table)
    stamp = f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} thread, {platform.system()}"
    console.print(f"{stamp}, Python {platform.python_version()}, {len(source.names)} objects")


if __name__ == "__main__":
    main()
