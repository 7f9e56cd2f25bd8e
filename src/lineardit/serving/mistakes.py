"""Every error of the frameworks in our own short words: theirs repeat what was sent."""

from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from lineardit.serving.failures import Failure, invalid
from lineardit.serving.replies import json_reply
from lineardit.serving.schema import EditRequest, ImageReference, ImageRequest, ImageToImage, PngRequest

_HTTP_MESSAGES = {
    404: "There is nothing here.",
    405: "This place takes another method.",
    400: "The body of the request is no JSON that can be read.",
}

_LIMITS: Mapping[str, str] = {
    "gt": "more than",
    "ge": "at least",
    "le": "at most",
    "min_length": "at least of length",
    "max_length": "at most of length",
}


def add_failures(app: FastAPI) -> None:
    """Every error as our own short words: those of the frameworks repeat what was sent."""

    @app.exception_handler(Failure)
    async def told(_: Request, failure: Failure) -> Response:
        return json_reply(failure.body(), failure.status, failure.headers())

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        failure = invalid_request(error, EditRequest if request.url.path.endswith("edits") else ImageRequest)
        return json_reply(failure.body(), failure.status)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        message = _HTTP_MESSAGES.get(error.status_code, "The request was refused.")
        allow = {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
        return json_reply(Failure(error.status_code, "refused", message).body(), error.status_code, allow)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        failure = Failure(500, "internal", "Something went wrong. The server's log says what.")
        return json_reply(failure.body(), 500)


def invalid_request(error: RequestValidationError, kind: type[ImageRequest] = ImageRequest) -> Failure:
    """The first mistake, by the name of its field if that is one of ours, and by the rule."""
    first = error.errors()[0]
    known = {
        *EditRequest.model_fields,
        *ImageReference.model_fields,
        *ImageToImage.model_fields,
        *PngRequest.model_fields,
    }
    field = next((str(part) for part in first["loc"] if part in known), "body")
    if first["type"] == "extra_forbidden":
        return invalid("body", f"There is an unknown field. Known are {', '.join(kind.model_fields)}.")
    rules = {"missing": "is missing", "json_invalid": "is no JSON"}
    context = first.get("ctx", {})
    if "expected" in context:
        rules["literal_error"] = f"is one of {context['expected']}"
    for limit, words in _LIMITS.items():
        if limit in context:
            rules[first["type"]] = f"is {words} {context[limit]}"
    kinds = {"string": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
    wanted = first["type"].partition("_")[0]
    rule = rules.get(first["type"]) or (
        f"is {kinds[wanted]}" if wanted in kinds else "is not as it should be"
    )
    return invalid(field, f"{field} {rule}.")
