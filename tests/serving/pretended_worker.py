"""A worker that draws nothing, for the server's tests: no torch, and it hangs, fails or dies as it is told.

The first word of a prompt decides: `die`, `die-once FILE`, `hang`, `fail KIND`, `slow`, `until FILE` (it
waits for that file), anything else. Its pictures are of one colour: the seed, how many were drawn together,
and its process modulo 256; one that starts from a picture is that picture.
"""

import os
import queue
import sys
import threading
import time
from pathlib import Path

from lineardit.serving.frames import Frame, pack, read_frame


def say(message: dict[str, object], payload: bytes = b"") -> None:
    sys.stdout.buffer.write(pack(message, payload))
    sys.stdout.buffer.flush()


def obey(prompt: str) -> str | None:
    word, _, rest = prompt.partition(" ")
    if word == "die" or (word == "die-once" and not Path(rest).exists()):
        if rest:
            Path(rest).touch()
        os._exit(1)
    if word == "hang":
        time.sleep(1000)
    return rest if word == "fail" else None


def draw(order: dict[str, object], payload: bytes, cancelled: set[tuple[int, int]]) -> None:
    batch, jobs = order["batch"], order["jobs"]
    total = max(1, int(jobs[0]["num_inference_steps"] * (jobs[0]["strength"] or 1)))
    pause = 0.05 if any(job["prompt"].startswith("slow") for job in jobs) else 0.0
    for job in jobs:
        word, _, place = job["prompt"].partition(" ")
        while word == "until" and not Path(place).exists():
            time.sleep(0.002)
    about = {"batch": batch, "total": total, "width": 1, "height": 1}
    for step in range(1, total + 1):
        rows = [row for row in range(len(jobs)) if (batch, row) not in cancelled]
        if not rows:
            return
        time.sleep(pause)
        looking = [row for row in rows if order["previews"][row]]
        say(
            {"type": "step", "step": step, "rows": looking, **about}, bytes([step % 256, 0, 0]) * len(looking)
        )
        for row, job in enumerate(jobs):
            size = {"width": job["width"], "height": job["height"]}
            pixels = bytes([job["seed"] % 256, len(jobs), os.getpid() % 256]) * (job["width"] * job["height"])
            if payload:
                pixels = payload[row * len(pixels) : (row + 1) * len(pixels)]
            if step in order["partials"][row] and row in rows:
                number = order["partials"][row].index(step)
                say({"type": "partial", "batch": batch, "row": row, "number": number, **size}, pixels)
            if step == total and row in rows:
                say({"type": "picture", "batch": batch, "row": row, **size}, pixels)


def main() -> None:
    stdin = sys.stdin.buffer
    load = read_frame(stdin).message
    if load["device"] == "broken":
        say({"type": "failed", "batch": None, "kind": "CheckpointError", "message": "there is no model"})
        return
    facts = {
        "size": 24,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "sampler": "dpm++",
        "samplers": ["euler", "heun", "dpm++"],
    }
    facts |= {"device": load["device"], "dtype": "float32", "unit": 8, "batch": load["batch"]}
    say({"type": "ready", "models": [{"name": name, **facts} for name in load["models"]]})
    cancelled: set[tuple[int, int]] = set()
    orders: queue.SimpleQueue[Frame] = queue.SimpleQueue()

    def read() -> None:
        while (frame := read_frame(stdin)) is not None:
            message = frame.message
            if message["type"] == "cancel":
                cancelled.add((message["batch"], message["row"]))
            else:
                orders.put(frame)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        order, payload = orders.get()
        say({"type": "note", "batch": order["batch"], "row": 0, "text": order["jobs"][0]["prompt"][:20]})
        kind = next((found for job in order["jobs"] if (found := obey(job["prompt"]))), None)
        if kind is not None:
            failure = {"type": "failed", "batch": order["batch"], "kind": kind, "message": "/secret/place"}
            say(failure)
            continue
        draw(order, payload, cancelled)
        say({"type": "done", "batch": order["batch"]})


if __name__ == "__main__":
    main()
