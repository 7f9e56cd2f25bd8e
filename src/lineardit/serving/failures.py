"""What a request is answered with when it is not answered with pictures. Nothing of the request is in it."""

from collections.abc import Mapping

from lineardit.errors import LineardiTError

_STATUS_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Failure(LineardiTError):
    """A refusal or a mishap, as it is told to the client.

    `message` is a sentence of ours: no input, no path, no text of a library. `retry_after` are seconds.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.field, self.retry_after = field, retry_after

    def body(self) -> dict[str, object]:
        """As OpenAI's API writes errors."""
        otherwise = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _STATUS_TYPES.get(self.status, otherwise)
        return {"error": {"message": self.message, "type": kind, "param": self.field, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Those that go with the status."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def invalid(field: str, message: str) -> Failure:
    """A value of a request breaks a rule."""
    return Failure(400, "invalid_value", message, field=field)


def unknown_model() -> Failure:
    """No model of this name is served."""
    message = "There is no such model here. GET /v1/models lists what there is."
    return Failure(404, "model_not_found", message, field="model")


def full(retry_after: int) -> Failure:
    """The queue has no place for so many pictures."""
    message = "The queue is full. Try again after the seconds that the header Retry-After gives."
    return Failure(429, "queue_full", message, retry_after=retry_after)


def crowded() -> Failure:
    """Pictures that were sent fill the memory that is kept for them."""
    message = "Too many pictures are being sent at this moment. Try again in a while."
    return Failure(503, "crowded", message, retry_after=5)


def closing() -> Failure:
    """The server was told to stop."""
    return Failure(503, "closing", "The server is closing down. Try again in a while.", retry_after=10)


def late() -> Failure:
    """A request took longer than requests may."""
    return Failure(503, "too_late", "This took longer than a request may. Try a smaller one.", retry_after=30)


def lost() -> Failure:
    """The worker died twice over one picture."""
    message = "The process that draws ended twice while it drew this picture. Try other settings."
    return Failure(500, "worker_lost", message)


def failed(kind: str) -> Failure:
    """A worker could not draw a picture, by the name of its error."""
    if kind in {"OutOfMemory", "MemoryLimitError"}:
        message = "The device has too little memory for this picture. Try a smaller one."
        return Failure(507, "out_of_memory", message)
    if kind == "NotFiniteError":
        message = "The model gave numbers that are no colours. Try other settings."
        return Failure(500, "not_finite", message)
    if kind in {"InputError", "ShapeError", "PromptError", "ConfigError"}:
        return Failure(400, "invalid_value", "The model does not take these settings.")
    return Failure(500, "internal", "The picture could not be drawn. The server's log says why.")
