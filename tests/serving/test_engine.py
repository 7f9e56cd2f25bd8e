"""The engine: every accepted picture is drawn or its request is told why not, whatever the workers do."""

import asyncio
import errno
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lineardit.config.serving import ServingConfig
from lineardit.errors import CheckpointError, LineardiTError
from lineardit.serving.device import Device, WorkerDiedError
from lineardit.serving.engine import Engine
from lineardit.serving.failures import Failure
from lineardit.serving.ticket import Event, Finished, Note, Partial, Picture, Progress, Ticket, Waiting

PRETENDED = [sys.executable, str(Path(__file__).with_name("pretended_worker.py"))]


class Count:
    """What the engine says of itself."""

    def __init__(self) -> None:
        self.pictures, self.restarts = 0, 0

    def drawn(self, pictures: int, seconds: float) -> None:
        self.pictures += pictures

    def restarted(self) -> None:
        self.restarts += 1


@asynccontextmanager
async def running(count: Count | None = None, **options: object) -> AsyncIterator[Engine]:
    config = ServingConfig(**{"devices": ("cpu",), "limits": {"waiting": 12}, **options})
    engine = Engine(config, count or Count(), PRETENDED)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def ticket(*prompts: str, seed: int = 0, steps: int = 3, width: int = 8, **options: object) -> Ticket:
    made = Ticket(previews=bool(options.get("previews", False)))
    for index, prompt in enumerate(prompts):
        settings = {"prompt": prompt, "seed": seed + index, "width": width, "height": 8, "sampler": "euler"}
        settings |= {"num_inference_steps": steps, "guidance_scale": 3.0, "strength": None}
        settings["model"] = options.get("model", "emoji")
        made.pictures.append(Picture(made, index, settings, partials=options.get("partials", ())))
    return made


async def events(asked: Ticket) -> list[Event]:
    return [event async for event in asked]


async def colours(asked: Ticket) -> list[tuple[int, ...]]:
    """The first pixel of each picture: seed, pictures drawn together, process."""
    found = {
        event.index: event.pixels.data[:3] for event in await events(asked) if isinstance(event, Finished)
    }
    return [tuple(found[index]) for index in sorted(found)]


def alone(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own, and never for longer than 20 s."""

    async def bounded(*arguments: object) -> None:
        async with asyncio.timeout(20):
            await test(*arguments)

    def run() -> None:
        asyncio.run(bounded())

    def run_in(tmp_path: Path) -> None:
        asyncio.run(bounded(tmp_path))

    chosen = run_in if "tmp_path" in test.__code__.co_varnames[: test.__code__.co_argcount] else run
    chosen.__name__, chosen.__doc__ = test.__name__, test.__doc__
    return chosen


@alone
async def test_a_request_gets_its_place_its_steps_and_its_pictures() -> None:
    async with running() as engine:
        assert engine.model().unit == 8 and engine.is_ready
        asked = ticket("a cat", "a cat", seed=7, previews=True, partials=(2,))
        engine.submit(asked)
        found = await events(asked)
    assert found[0] == Waiting(0)
    assert Note(0, "a cat") in found
    pixels = {event.index: event.pixels.data[:2] for event in found if isinstance(event, Finished)}
    assert pixels == {0: bytes([7, 2]), 1: bytes([8, 2])}
    assert {event.number for event in found if isinstance(event, Partial)} == {0}
    steps = [event for event in found if isinstance(event, Progress)]
    assert all(event.preview is not None and event.preview.data[0] == event.step for event in steps)
    assert {event.step for event in steps} <= {1, 2, 3} and steps[-1].step == 3


@alone
async def test_pictures_of_one_kind_are_drawn_together_and_others_are_not() -> None:
    async with running() as engine:
        first = ticket("slow", width=16)
        engine.submit(first)
        while not engine.drawing:
            await asyncio.sleep(0)
        asked = [ticket("a", seed=1), ticket("b", seed=2, steps=2), ticket("c", seed=3), ticket("d", seed=4)]
        for each in asked:
            engine.submit(each)
        found = [(await colours(each))[0][:2] for each in asked]
        assert found == [(1, 3), (2, 1), (3, 3), (4, 3)]


@alone
async def test_no_more_than_the_worker_takes_are_drawn_together() -> None:
    async with running(batch=2) as engine:
        asked = ticket("slow", "b", "c", "d", "e")
        engine.submit(asked)
        assert [together for _, together, _ in await colours(asked)] == [2, 2, 2, 2, 1]


@alone
async def test_a_full_queue_refuses_and_says_when_to_come_back(tmp_path: Path) -> None:
    async with running(batch=1, limits={"waiting": 3}) as engine:
        drawn = ticket(f"until {tmp_path / 'go'}")
        engine.submit(drawn)
        while not engine.drawing:
            await asyncio.sleep(0)
        waiting = ticket("a", "b")
        engine.submit(waiting)
        with pytest.raises(Failure) as refused:
            engine.submit(ticket("c", "d"))
        assert refused.value.status == 429
        assert refused.value.retry_after is not None and refused.value.retry_after >= 1
        last = ticket("c")
        engine.submit(last)
        assert not engine.is_ready
        (tmp_path / "go").touch()
        positions = [event.position for event in await events(last) if isinstance(event, Waiting)]
        assert positions[-1] == 0 and positions == sorted(positions, reverse=True)


@alone
async def test_the_hint_when_to_come_back_grows_with_what_waits() -> None:
    async with running(batch=1, limits={"waiting": 500}) as engine:
        assert engine.retry_after() == 1  # nothing is known yet
        first = ticket("slow", steps=4)
        engine.submit(first)
        await events(first)
        while engine.devices[0].batch:
            await asyncio.sleep(0.01)
        engine.submit(ticket(*["slow"] * 100, steps=4))
        few = engine.retry_after()
        engine.submit(ticket(*["slow"] * 300, steps=4))
        assert 10 <= few < engine.retry_after() <= 300  # half of 100 pictures of 0.2 s or more each


@alone
async def test_a_cancelled_request_leaves_the_queue_and_stops_between_two_steps() -> None:
    count = Count()
    async with running(count, batch=1) as engine:
        drawn, waiting, last = ticket("slow", steps=400), ticket("slow", steps=400), ticket("a")
        for each in (drawn, waiting, last):
            engine.submit(each)
        while not engine.drawing:
            await asyncio.sleep(0)
        assert engine.drawing == 1 and len(engine.waiting) == 2
        waiting.cancel()
        assert len(engine.waiting) == 1
        drawn.cancel()
        assert len(await colours(last)) == 1  # 400 steps would take 20 s
        assert await events(drawn) == []
        while not count.pictures:  # it is counted once it was handed over
            await asyncio.sleep(0.01)
    assert count.pictures == 1


@alone
async def test_one_of_a_batch_may_leave_without_the_others() -> None:
    async with running() as engine:
        stays, leaves = ticket("slow", steps=6), ticket("slow", seed=1, steps=6)
        engine.submit(stays)
        engine.submit(leaves)
        await asyncio.sleep(0.12)
        leaves.cancel()
        assert (await colours(stays))[0][:2] == (0, 2)


@alone
async def test_a_worker_that_dies_is_replaced_and_its_pictures_are_drawn_once_more(tmp_path: Path) -> None:
    count = Count()
    async with running(count) as engine:
        dying, beside = ticket(f"die-once {tmp_path / 'marker'}"), ticket("b", seed=9)
        engine.submit(dying)
        engine.submit(beside)
        first, second = (await colours(dying))[0], (await colours(beside))[0]
        assert first[:2] == (0, 1) and second[:2] == (9, 1)  # alone, since one of them was deadly
        assert count.restarts == 1 and engine.is_ready


@alone
async def test_a_picture_that_kills_two_workers_is_given_up_and_its_neighbours_are_not() -> None:
    count = Count()
    async with running(count) as engine:
        deadly, beside, later = ticket("die"), ticket("b", seed=9), ticket("c", seed=5)
        engine.submit(deadly)
        engine.submit(beside)
        with pytest.raises(Failure) as told:
            await events(deadly)
        assert told.value.status == 500 and told.value.code == "worker_lost"
        assert (await colours(beside))[0][:2] == (9, 1)
        engine.submit(later)
        assert (await colours(later))[0][0] == 5
    assert count.restarts == 2


@alone
async def test_a_worker_killed_while_idle_is_replaced_before_the_next_request() -> None:
    async with running() as engine:
        before = engine.devices[0].process_id
        assert before is not None
        os.kill(before, signal.SIGKILL)
        while engine.devices[0].process_id == before or not engine.is_ready:
            await asyncio.sleep(0.01)
        asked = ticket("a")
        engine.submit(asked)
        assert len(await colours(asked)) == 1
        assert engine.devices[0].process_id not in (None, before) and asked.pictures[0].attempts == 0


@alone
async def test_a_worker_that_cannot_be_started_again_is_tried_until_it_can() -> None:
    count, start = Count(), asyncio.create_subprocess_exec
    left = [OSError(errno.EMFILE, "Too many open files")] * 2

    async def sometimes(*command: str, **options: Any) -> asyncio.subprocess.Process:
        if left:
            raise left.pop()
        return await start(*command, **options)

    async with running(count) as engine:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "create_subprocess_exec", sometimes)
            before = engine.devices[0].process_id
            assert before is not None
            os.kill(before, signal.SIGKILL)
            asked = ticket("a")
            engine.submit(asked)
            assert len(await colours(asked)) == 1
    assert not left and count.restarts == 3


@alone
async def test_a_worker_may_be_silent_for_as_long_as_a_request_may_take(tmp_path: Path) -> None:
    count = Count()
    async with running(count, stall_seconds=0.1) as engine:
        asked = ticket(f"until {tmp_path / 'go'}")
        engine.submit(asked)
        await asyncio.sleep(0.5)
        (tmp_path / "go").touch()
        assert len(await colours(asked)) == 1
    assert count.restarts == 0


@alone
async def test_a_worker_that_hangs_is_killed_at_once() -> None:
    config = ServingConfig(stall_seconds=0.3, limits={"seconds": 0.3})
    device, asked = Device(config, "cpu", PRETENDED), ticket("hang")
    await device.start()
    try:
        assert device.process_id is not None
        with pytest.raises(WorkerDiedError):
            await device.draw(asked.pictures)
        assert device._process is not None
        assert await device._process.wait() == -signal.SIGKILL
    finally:
        await device.stop()


@alone
async def test_a_worker_that_hangs_is_replaced() -> None:
    count = Count()
    async with running(count, stall_seconds=0.3, limits={"seconds": 0.3}) as engine:
        asked = ticket("hang")
        engine.submit(asked)
        with pytest.raises(Failure, match="ended twice"):
            await events(asked)
    assert count.restarts == 2


@alone
async def test_an_error_of_the_worker_is_told_without_its_words() -> None:
    async with running() as engine:
        for kind, status in (
            ("OutOfMemory", 507),
            ("NotFiniteError", 500),
            ("ShapeError", 400),
            ("Else", 500),
        ):
            asked = ticket(f"fail {kind}")
            engine.submit(asked)
            with pytest.raises(Failure) as told:
                await events(asked)
            assert told.value.status == status and "secret" not in str(told.value.body())
        asked, beside = ticket("fail OutOfMemory"), ticket("b")
        engine.submit(asked)
        engine.submit(beside)
        with pytest.raises(Failure):
            await events(asked)
        assert len(await colours(beside)) == 1  # a batch that does not fit into memory is drawn one by one


@alone
async def test_draining_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    async with running(batch=1) as engine:
        accepted = [ticket("slow", seed=seed) for seed in range(3)]
        for each in accepted:
            engine.submit(each)
        draining = asyncio.create_task(engine.drain(10))
        await asyncio.sleep(0.02)
        with pytest.raises(Failure) as refused:
            engine.submit(ticket("a"))
        assert refused.value.status == 503 and not engine.is_ready
        assert [(await colours(each))[0][0] for each in accepted] == [0, 1, 2]
        await draining


@alone
async def test_what_is_not_finished_when_draining_ends_is_told_so() -> None:
    async with running() as engine:
        asked = ticket("slow", steps=400)
        engine.submit(asked)
        await engine.drain(0.1)
        with pytest.raises(Failure, match="closing down"):
            await events(asked)


@alone
async def test_two_devices_share_one_queue() -> None:
    async with running(devices=("cpu", "cpu"), batch=1) as engine:
        asked = [ticket("slow", seed=seed) for seed in range(4)]
        for each in asked:
            engine.submit(each)
        found = [(await colours(each))[0] for each in asked]
        assert [colour[0] for colour in found] == [0, 1, 2, 3]
        assert len({colour[2] for colour in found}) == 2


@alone
async def test_an_unread_event_is_replaced_by_the_next_of_its_kind() -> None:
    async with running() as engine:
        asked = ticket("a", steps=50, previews=True)
        engine.submit(asked)
        while asked.is_open:
            await asyncio.sleep(0.01)
        found = await events(asked)
    kinds = [type(event).__name__ for event in found]
    assert kinds == ["Waiting", "Note", "Progress", "Finished"]


@alone
async def test_a_model_that_does_not_load_is_said_at_the_start() -> None:
    engine = Engine(ServingConfig(devices=("cpu", "broken")), Count(), PRETENDED)
    with pytest.raises(CheckpointError, match="there is no model"):
        await engine.start()
    assert all(device.process_id is None for device in engine.devices)
    silent = Engine(ServingConfig(devices=("cpu",)), Count(), [sys.executable, "-c", ""])
    with pytest.raises(LineardiTError, match="the process that draws on cpu ended"):
        await silent.start()
