"""How a model is served: where, on which devices, and how much one request may ask for."""

import ipaddress
from typing import Literal

from pydantic import Field, field_validator

from lineardit.config.models import Config


class Limits(Config):
    """What a request may ask for. All of it is checked before any work."""

    pictures: int = Field(10, ge=1, le=100)
    """Pictures of one request."""
    pixels: int = Field(2048 * 2048, ge=64)
    """Height times width of a picture."""
    steps: int = Field(100, ge=1)
    """Denoising steps of a picture."""
    work: int = Field(100 * 2048 * 2048, ge=64)
    """Pixels x steps x pictures of one request."""
    prompt: int = Field(4_000, ge=1)
    """Characters of a prompt, and of a negative prompt."""
    body: int = Field(256_000, ge=1_000)
    """Bytes of a request."""
    picture_body: int = Field(32_000_000, ge=1_000)
    """Bytes of a request that sends a picture."""
    picture_pixels: int = Field(64_000_000, ge=1)
    """Height times width that such a picture may claim to have."""
    initial_pixels: int = Field(4096 * 4096, ge=64)
    """Height times width of a picture to start from, which is decoded."""
    held: int = Field(256_000_000, ge=1_000)
    """Bytes of all requests with pictures that are in the house at one time."""
    waiting: int = Field(64, ge=1)
    """Pictures in the queue; a request that does not fit is told when to come back."""
    seconds: float = Field(600.0, gt=0)
    """From a request's arrival to the last byte of its answer."""
    body_seconds: float = Field(30.0, gt=0)
    """Until the whole of a request has arrived, and before that for its head."""


class ServingConfig(Config):
    """What `lineardit serve` needs to know. The API key is not here, so that no error can show it."""

    models: tuple[str, ...] = ()
    """Folders or hub ids; the bundled model where there is none. The first is meant where none is named."""
    host: str = "127.0.0.1"
    """Address to listen on. One that other machines reach needs an API key."""
    port: int = Field(7860, ge=0, le=65535)
    """0 lets the system choose."""
    names: tuple[str, ...] = ()
    """Host names that requests may use besides `localhost` and plain addresses."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose `X-Forwarded-For` says who asks; nobody else's is believed."""
    devices: tuple[str, ...] = Field(("auto",), min_length=1)
    """One worker process for each."""
    dtype: str = "fp32"
    """fp32, bf16, fp16 or auto."""
    kernels: str = "auto"
    """What computes passes over memory on a CPU: native (C++), torch, or auto."""
    compile: bool = False
    """Steps and decoding are compiled by torch.compile: the first picture of a size takes minutes."""
    quantize: Literal["int8"] | None = None
    """What the layers of the transformers are rounded to."""
    memory: int | None = Field(None, gt=0)
    """Bytes that each worker process, on a GPU its tensors, may take; larger pictures are drawn in bands."""
    keep_freed: bool = True
    """Workers on a CPU keep large blocks that are freed; those with a bound of memory where there is room."""
    batch: int = Field(8, ge=1, le=64)
    """Pictures denoised together on a GPU. On a CPU each is denoised alone, which costs nothing there."""
    drain_seconds: float = Field(60.0, ge=0)
    """How long accepted requests may still take once the server was told to stop."""
    load_seconds: float = Field(1800.0, gt=0)
    """A worker that has not loaded the model by then is given up."""
    stall_seconds: float = Field(300.0, gt=0)
    """A worker that says nothing in its work for so long, and for at least `limits.seconds`, is replaced."""
    limits: Limits = Limits()

    @field_validator("trusted_proxies")
    @classmethod
    def _trusted_proxies_are_addresses(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError:
                raise ValueError(
                    f"{proxy!r} is no address and no network. Use 127.0.0.1, or 10.0.0.0/8."
                ) from None
        return proxies
