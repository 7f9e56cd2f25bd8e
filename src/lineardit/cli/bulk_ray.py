"""Pictures drawn by actors on a Ray cluster, each with the model on a device of its own."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from lineardit.cli.bulk import Task, as_png, batches
from lineardit.errors import InputError, LineardiTError
from lineardit.kernels import native
from lineardit.kernels.allocator import keep_freed_memory
from lineardit.pipeline import Pipeline, Settings
from lineardit.serving.cluster import join_cluster

_AHEAD = 2
"""Batches that each actor has: one in hand and one waiting."""
_LIVES = 3


class Loads(NamedTuple):
    """What an actor draws with."""

    model: str | None
    device: str
    dtype: str
    kernels: str
    keep_freed: bool


class Drawer:
    """What runs in an actor."""

    def __init__(self, loads: Loads) -> None:
        if loads.keep_freed:
            keep_freed_memory()
        native.use(loads.kernels)
        self._pipe = Pipeline.from_pretrained(loads.model, device=loads.device, dtype=loads.dtype)
        self._pipe.pack()

    def draw(self, jobs: Sequence[dict[str, Any]]) -> list[bytes]:
        """Files of pictures that are drawn together."""
        settings = [Settings(**job) for job in jobs]
        pictures = self._pipe.draw(settings).images
        return [as_png(picture, job) for picture, job in zip(pictures, settings, strict=True)]


def drawn_on_ray(
    tasks: Sequence[Task],
    loads: Loads,
    *,
    address: str | None,
    actors: int | None,
    batch: int,
) -> Iterator[tuple[Task, bytes]]:
    """Files in the order in which they are ready. An actor that dies is started again, with its work.

    Raises:
        InputError: there are no actors or too many for the cluster, or the model cannot be loaded there.
        LineardiTError: there is no such cluster, or an actor died too often.
    """
    if actors is not None and actors < 1:
        raise InputError(f"actors={actors} is not a positive number. Use 1 or more.")
    if not tasks:
        return
    import ray
    from ray.exceptions import RayError

    join_cluster(address)
    try:
        found = ray.cluster_resources()
        gpus, cpus = int(found.get("GPU", 0)), int(found.get("CPU", 0))
        count = actors or max(1, gpus)
        if count > cpus:
            raise InputError(f"actors={count} take a CPU each of {cpus} in the cluster. Use {cpus} or fewer.")
        share = 1 / -(-count // gpus) if gpus else 0.0  # whole numbers of actors fit on a GPU
        kind = ray.remote(num_cpus=1, num_gpus=share, max_restarts=_LIVES,
                          max_task_retries=_LIVES)(Drawer)  # fmt: skip
        pool = [kind.remote(loads) for _ in range(count)]
        waiting = deque(batches(tasks, batch if gpus else 1))
        running: dict[Any, tuple[Any, list[Task]]] = {}

        def hand_out(actor: Any) -> None:
            if waiting:
                group = waiting.popleft()
                running[actor.draw.remote([asdict(task.job) for task in group])] = (actor, group)

        for actor in pool * _AHEAD:
            hand_out(actor)
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            actor, group = running.pop(ready)
            hand_out(actor)
            yield from zip(group, ray.get(ready), strict=True)
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, LineardiTError):
            raise cause from None
        raise LineardiTError(
            f"drawing on Ray ended early ({type(error).__name__}). Start it again."
        ) from None
    finally:
        ray.shutdown()
