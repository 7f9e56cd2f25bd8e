"""The service on a Ray cluster: replicas on its nodes behind Ray Serve's proxies, as many as there is to do.

Ray moves Python objects between its processes as pickles, and whoever reaches its ports can run code: its
network must be a private one. Between a replica and the worker that draws for it nothing changes.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lineardit.config.serving import ServingConfig
from lineardit.errors import InputError, LineardiTError
from lineardit.serving.replica import builder
from lineardit.serving.server import check_exposure, free_port

NAME = "lineardit"
_ONGOING = 1000
"""Requests that a replica holds: the bound that matters is its own queue, which knows when to come back."""


class Scale(NamedTuple):
    """How many replicas there are."""

    least: int
    most: int
    requests: float
    """Drawn and waiting, on each: more replicas are started above, fewer are kept below."""
    gpus: float | None
    """Of each; None takes one where the cluster has any."""


def serve_on_ray(
    config: ServingConfig,
    key: str | None,
    scale: Scale,
    *,
    address: str | None = None,
    announce: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM or SIGINT. `address` is that of a running cluster; without it one is started here.

    On a running cluster requests are taken on every node that has a replica, else on this one.

    Raises:
        InputError: the address is not to be had, others reach it and there is no key, the cluster serves
            others at another one, or the scale is none.
        LineardiTError: there is no such cluster, or the replicas do not start; Ray's log says why.
    """
    check_exposure(config.host, key)
    _check_scale(scale)
    port = free_port(config) if address is None else config.port
    import ray
    from ray import serve
    from ray.exceptions import RayError

    join_cluster(address)
    try:
        if address is not None:
            port = _port_on_cluster(config)
        gpus = scale.gpus
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        serve.start(
            proxy_location="HeadOnly" if address is None else "EveryNode",
            http_options={"host": config.host, "port": port},
        )
        try:
            serve.run(_application(serve, config, key, scale, gpus), name=NAME, route_prefix="/")
        except (RuntimeError, RayError):
            raise LineardiTError(
                "the replicas did not start; the lines above, or Ray's log, say why."
            ) from None
        with _told_to_stop() as told:
            announce(
                f"http://[{config.host}]:{port}" if ":" in config.host else f"http://{config.host}:{port}"
            )
            told.wait()
        serve.delete(NAME)
    finally:
        if address is None:
            serve.shutdown()
        ray.shutdown()


def _port_on_cluster(config: ServingConfig) -> int:
    """The port to listen on: Ray Serve, where it runs already, keeps to its own and says nothing.

    Raises:
        InputError: it listens at another address, or another program has the port.
    """
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return free_port(config)
    host: str = client.http_config.host
    port: int = client.http_config.port
    if host != config.host or config.port not in (0, port):
        raise InputError(
            f"host={config.host} port={config.port}: Ray Serve runs on this cluster already, and it keeps to "
            f"host={host} port={port}. Use these, or end it with `serve shutdown` first."
        )
    return port


def join_cluster(address: str | None) -> None:
    """Connect to a running cluster, or start one here.

    Raises:
        LineardiTError: there is none, or it does not start.
    """
    import ray

    # A cluster of one machine listens on loopback only: whoever reaches Ray's ports can run code.
    here = {} if address else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    try:
        ray.init(address or "local", logging_level="ERROR", **here)
    except Exception as error:  # Ray raises Exception itself where a process of its own is too slow
        where = "did not start on this machine" if address is None else f"is not to be reached at {address}"
        raise LineardiTError(f"Ray {where} ({type(error).__name__}); its log says why.") from None


def _application(serve: Any, config: ServingConfig, key: str | None, scale: Scale, gpus: float) -> Any:
    """The deployment, bound to its settings."""
    deployment = serve.deployment(serve.ingress(builder(config, key))())
    return deployment.options(
        name=NAME,
        max_ongoing_requests=_ONGOING,
        graceful_shutdown_timeout_s=config.drain_seconds + 5,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        autoscaling_config={
            "min_replicas": scale.least,
            "max_replicas": scale.most,
            "target_ongoing_requests": scale.requests,
            # Loading a model takes longer than looking at the queue.
            "upscale_delay_s": 5,
            "downscale_delay_s": 300,
        },
    ).bind()


def _check_scale(scale: Scale) -> None:
    if not 1 <= scale.least <= scale.most:
        raise InputError(f"replicas={scale.least}:{scale.most} is no range from 1 up. Use 2, or 1:4.")
    if not scale.requests > 0 or (scale.gpus is not None and not scale.gpus >= 0):
        raise InputError("requests_per_replica is above 0, and gpus_per_replica at least 0.")


@contextlib.contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    told = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: told.set()) for number in signals}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
