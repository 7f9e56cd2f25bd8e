"""What Prometheus reads at `/metrics`."""

from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


@runtime_checkable
class Watched(Protocol):
    """What the gauges look at: `lineardit.serving.engine.Engine`."""

    @property
    def drawing(self) -> int:
        """Pictures that workers have in hand."""

    @property
    def queued(self) -> int:
        """Pictures that wait."""


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "lineardit_requests", "Answers by route and status", ["route", "status"], registry=self._registry
        )
        self.pictures = Counter("lineardit_pictures", "Pictures drawn", registry=self._registry)
        self.cancelled = Counter(
            "lineardit_requests_cancelled", "Requests whose client went away", registry=self._registry
        )
        self.restarts = Counter(
            "lineardit_worker_restarts", "Workers that had to be started again", registry=self._registry
        )
        self.seconds = Histogram(
            "lineardit_request_seconds", "From a request's arrival to its answer", ["route"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.batch_seconds = Histogram(
            "lineardit_batch_seconds", "Of drawing one batch", buckets=_SECONDS, registry=self._registry
        )

    def watch(self, engine: Watched) -> None:
        """Also tell the length of its queue."""
        waiting = Gauge("lineardit_pictures_waiting", "Pictures in the queue", registry=self._registry)
        waiting.set_function(lambda: engine.queued)
        drawing = Gauge("lineardit_pictures_drawing", "Pictures in hand", registry=self._registry)
        drawing.set_function(lambda: engine.drawing)

    def drawn(self, pictures: int, seconds: float) -> None:
        """A batch is done."""
        self.pictures.inc(pictures)
        self.batch_seconds.observe(seconds)

    def restarted(self) -> None:
        """A worker had to be started again."""
        self.restarts.inc()

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        found: bytes = generate_latest(self._registry)
        return found
