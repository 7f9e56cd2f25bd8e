"""What a server refuses: before any work, in few words, and none of them the client's."""

import base64
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from PIL import Image

from lineardit.config.serving import Limits
from lineardit.errors import InputError
from lineardit.serving.device import Facts
from lineardit.serving.failures import Failure
from lineardit.serving.schema import (
    EditRequest,
    ImageRequest,
    ImageToImage,
    TextToImage,
    openai_wish,
    ticket_for,
)
from lineardit.serving.server import check_exposure
from lineardit.serving.ticket import Picture

GENERATE, TXT2IMG, PNG_INFO = "/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/png-info"
EDITS, IMG2IMG = "/v1/images/edits", "/sdapi/v1/img2img"
KEY = "correct-horse-battery-staple"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> str:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")).decode()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::1"]
)
def test_a_name_that_somebody_pointed_here_is_refused(pretended: Any, host: str) -> None:
    assert pretended.get("/v1/models", {"Host": host}).code == "wrong_host"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:7860", "192.168.0.7:80"])
def test_addresses_and_localhost_are_this_server(pretended: Any, host: str) -> None:
    assert pretended.get("/v1/models", {"Host": host}).status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "file://"])
def test_a_page_of_another_site_can_do_nothing(pretended: Any, origin: str) -> None:
    before = pretended.metric("lineardit_pictures_total")
    answer = pretended.post(GENERATE, {"prompt": "a cat"}, {"Origin": origin})
    assert answer.status == 403 and answer.code == "wrong_origin"
    assert pretended.post("/sdapi/v1/interrupt", b"", {"Origin": origin}).status == 403
    assert pretended.post(GENERATE, {"prompt": "a cat"}, {"Sec-Fetch-Site": "cross-site"}).status == 403
    assert pretended.metric("lineardit_pictures_total") == before
    assert "access-control-allow-origin" not in answer.headers


def test_its_own_page_and_programs_can(pretended: Any) -> None:
    assert pretended.post(GENERATE, {"prompt": "a cat"}, {"Origin": pretended.url}).status == 200
    assert pretended.post("/sdapi/v1/interrupt", b"").status == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_form_can_send_is_refused(pretended: Any, kind: str) -> None:
    answer = pretended.post(GENERATE, {"prompt": "a cat"}, {"Content-Type": kind})
    assert answer.status == 415 and answer.code == "no_json"


def test_every_answer_forbids_foreign_scripts_and_frames(pretended: Any) -> None:
    for answer in (pretended.get("/"), pretended.get("/nothing"), pretended.post(GENERATE, b"")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert "frame-ancestors 'none'" in policy and answer.headers["x-content-type-options"] == "nosniff"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "x" * 4001}, "prompt"),
    ({"prompt": "a", "negative_prompt": "x" * 4001}, "negative_prompt"),
    ({"prompt": " \n"}, "prompt"),
    ({"prompt": "a\0b"}, "prompt"),
    ({"prompt": "a\ud800b"}, "prompt"),
    ({"prompt": ["a"]}, "prompt"),
    ({}, "prompt"),
    ({"prompt": "a", "size": "72x64"}, "size"),
    ({"prompt": "a", "size": "20x24"}, "size"),
    ({"prompt": "a", "size": "0x24"}, "size"),
    ({"prompt": "a", "size": "99999999x99999999"}, "size"),
    ({"prompt": "a", "size": "٢٤x٢٤"}, "size"),
    ({"prompt": "a", "n": 5}, "n"),
    ({"prompt": "a", "n": 0}, "n"),
    ({"prompt": "a", "n": 4, "size": "64x64", "num_inference_steps": 1000}, "n"),
    ({"prompt": "a", "num_inference_steps": 1001}, "num_inference_steps"),
    ({"prompt": "a", "num_inference_steps": 2.5}, "num_inference_steps"),
    ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale"),
    ({"prompt": "a", "guidance_scale": float("inf")}, "guidance_scale"),
    ({"prompt": "a", "guidance_scale": -1}, "guidance_scale"),
    ({"prompt": "a", "seed": -1}, "seed"),
    ({"prompt": "a", "seed": 2**63}, "seed"),
    ({"prompt": "a", "seed": 2**63 - 1, "n": 2}, "seed"),
    ({"prompt": "a", "seed": True}, "seed"),
    ({"prompt": "a", "sampler": "/etc/passwd"}, "sampler"),
    ({"prompt": "a", "output_format": "gif"}, "output_format"),
    ({"prompt": "a", "response_format": "url"}, "response_format"),
    ({"prompt": "a", "partial_images": 2}, "partial_images"),
    ({"prompt": "a", "background": "transparent"}, "background"),
    ({"prompt": "a", "<script>": 1}, "body"),
]


@pytest.mark.parametrize(("body", "field"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_a_request_beyond_the_rules_is_refused_by_the_name_of_its_field(
    pretended: Any, body: dict[str, Any], field: str
) -> None:
    before = pretended.metric("lineardit_batch_seconds_count")
    answer = pretended.post(GENERATE, body)
    assert answer.status == 400 and answer.json["error"]["param"] == field, answer
    assert len(answer.body) < 2000 and pretended.metric("lineardit_batch_seconds_count") == before


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"prompt":' * 10_000,
        b'{"seed": ' + b"9" * 100_000 + b"}",
        b'{"prompt": "a", "cfg_scale": 1e999, "guidance_scale": 1e999}', b'{"n": ' + b"-" * 50_000 + b"1}",
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(pretended: Any, body: bytes) -> None:
    for path in (GENERATE, TXT2IMG, PNG_INFO):
        answer = pretended.post(path, body)
        assert answer.status == 400 and len(answer.body) < 2000, answer


def test_errors_never_repeat_what_was_sent(pretended: Any) -> None:
    word = "SECRETWORD"
    fields = ("size", "sampler", "model", "output_format", "sampler_name", word)
    bodies = [{"prompt": "a", field: word} for field in fields]
    bodies += [{"prompt": f"fail {word}"}, {"prompt": f"fail ShapeError {word}"}]
    bodies += [{"prompt": [word]}, {"prompt": {word: word}}]
    for path in (GENERATE, TXT2IMG, PNG_INFO, f"/{word}"):
        for body in [
            *bodies,
            {"image": word},
            {"alwayson_scripts": {word: 1}},
            f'{{"prompt": {word}'.encode(),
        ]:
            answer = pretended.post(path, body)
            assert answer.status >= 400 or path == TXT2IMG, (path, body)
            if answer.status >= 400:
                assert word.encode() not in answer.body and len(answer.body) < 2000, (path, body)


@pytest.mark.parametrize(("picture_format", "most"), [("webp", 16383), ("jpeg", 65500)])
def test_a_side_longer_than_its_format_takes_is_refused_before_it_is_drawn(
    picture_format: str, most: int
) -> None:
    facts = Facts("emoji", "cpu", "float32", 1, 1, 24, 3, 3.0, "dpm++", ("dpm++",))

    def asked(size: str, file: str) -> Picture:
        wish = openai_wish(ImageRequest(prompt="a", size=size, output_format=file))
        return ticket_for(wish, facts, Limits()).pictures[0]

    assert asked(f"{most}x8", picture_format).settings["width"] == most
    for size in (f"{most + 1}x8", f"8x{most + 1}"):
        assert asked(size, "png").open
        with pytest.raises(Failure, match=f"at most {most} pixels") as refused:
            asked(size, picture_format)
        assert refused.value.field == "size"


def test_a_long_body_is_refused_before_it_has_come(pretended: Any) -> None:
    connection = pretended.connect()
    connection.putrequest("POST", GENERATE)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "900000000000")
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    connection = pretended.connect()
    parts = (b"x" * 100_000 for _ in range(3))
    connection.request("POST", GENERATE, parts, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_body_that_trickles_in_is_given_up(pretended: Any) -> None:
    connection = pretended.connect()
    connection.putrequest("POST", GENERATE)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b'{"prompt"')
    begun = time.monotonic()
    assert connection.getresponse().status == 408
    assert 0.5 < time.monotonic() - begun < 15
    connection.close()


@pytest.mark.parametrize(
    "path", ["/../pyproject.toml", "/page/page.js", "//etc/passwd", "/%2e%2e/x", "/docs", "/page.js/.."]
)
def test_only_the_page_can_be_read(pretended: Any, path: str) -> None:
    assert pretended.get(path).status == 404


@pytest.mark.parametrize(
    ("image", "status"),
    [
        ("not base64!", 400),
        (base64.b64encode(b"GIF89a" + bytes(60)).decode(), 400),
        (base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(), 400),
        (png(60_000, 60_000), 400),
        (png(0, 5), 400),
        (png(8, 8), 422),
        (png(8, 8, chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(50_000_000)))), 422),
        (png(8, 8, chunk(b"tEXt", b"lineardit\0" + b"[" * 100_000)), 422),
        (png(8, 8, chunk(b"iTXt", b"parameters\0\x01\x00\0\0" + b"damaged")), 422),
        (png(8, 8)[:40], 400),
    ],
)
def test_a_picture_is_refused_by_its_header_and_never_decoded(
    pretended: Any, image: str, status: int
) -> None:
    answer = pretended.post(PNG_INFO, {"image": image})
    assert answer.status == status and len(answer.body) < 2000, answer


GIF = base64.b64encode(b"GIF89a" + bytes(60)).decode()


@pytest.mark.parametrize(
    ("images", "more"),
    [
        ([], {}),
        ([GIF], {}),
        ([png(60_000, 60_000)], {}),
        ([png(4100, 4100)], {}),
        ([png(8, 8)], {}),
        (["http://127.0.0.1/a.png"], {}),
        (["file:///etc/passwd"], {}),
        (["good", "good"], {}),
        (["good"], {"strength": 0}),
        (["good"], {"strength": 1.5}),
        (["good"], {"size": "20x20"}),
    ],
)
def test_a_picture_to_start_from_is_checked_before_it_is_decoded(
    pretended: Any, images: list[str], more: dict[str, Any]
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    good = base64.b64encode(file.getvalue()).decode()
    sent = [good if image == "good" else image for image in images]
    before = pretended.metric("lineardit_batch_seconds_count")
    answer = pretended.post(EDITS, {"prompt": "a", "images": [{"image_url": each} for each in sent], **more})
    assert answer.status == 400 and len(answer.body) < 2000, answer
    theirs = {"denoising_strength": more["strength"]} if "strength" in more else {}
    theirs |= {"width": 20} if "size" in more else {}
    assert pretended.post(IMG2IMG, {"prompt": "a", "init_images": sent, **theirs}).status == 400
    assert pretended.metric("lineardit_batch_seconds_count") == before


def test_pictures_that_are_sent_do_not_fill_the_memory(start_pretended: Callable[..., Any]) -> None:
    with start_pretended(limits={"held": 4000}) as server:
        body = json.dumps({"prompt": "a", "images": [{"image_url": "x"}]}).encode()
        connection = server.connect()
        connection.putrequest("POST", EDITS)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "3900")
        connection.endheaders(body)
        server.until(lambda: server.post(EDITS, body + b" " * 200).status == 503)
        refused = server.post(EDITS, body + b" " * 200)
        assert refused.code == "crowded" and refused.headers["retry-after"] == "5"
        assert server.draw().status == 200
        connection.close()
        server.until(lambda: server.post(EDITS, body + b" " * 200).status == 400)


def test_a_picture_of_another_program_is_read(pretended: Any) -> None:
    text = (
        b"a cat\nNegative prompt: <b>fog</b>\nSteps: 4, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 64x64"
    )
    answer = pretended.post(PNG_INFO, {"image": png(64, 64, chunk(b"tEXt", b"parameters\0" + text))})
    assert answer.status == 200 and answer.json["lineardit"] is None
    assert answer.json["parameters"]["negative_prompt"] == "<b>fog</b>"
    assert answer.json["parameters"]["num_inference_steps"] == "4"


def test_a_key_is_asked_for_wherever_something_is_told_or_done(start_pretended: Callable[..., Any]) -> None:
    with start_pretended(KEY, names=("pictures.example",)) as server:
        for path in ("/", "/page.js", "/healthz", "/readyz"):
            assert server.get(path).status == 200
        refused = [
            server.get(path) for path in ("/v1/models", "/metrics", "/openapi.json", "/sdapi/v1/progress")
        ]
        refused += [server.post(path, {"prompt": "a"}) for path in (GENERATE, TXT2IMG, "/sdapi/v1/interrupt")]
        wrong = [
            f"Bearer {KEY}x",
            f"Bearer {KEY[:-1]}",
            "Bearer",
            KEY,
            "Basic !!!",
            "Bearer \xff",
            f"Digest {KEY}",
        ]
        refused += [server.get("/v1/models", {"Authorization": word}) for word in wrong]
        assert {(answer.status, answer.code) for answer in refused} == {(401, "wrong_key")}
        assert refused[0].headers["www-authenticate"] == "Bearer"
        basic = base64.b64encode(f"anybody:{KEY}".encode()).decode()
        for word in (f"Bearer {KEY}", f"bearer {KEY}", f"Basic {basic}"):
            headers = {"Authorization": word, "Host": "Pictures.Example"}
            assert server.post(GENERATE, {"prompt": "a"}, headers).status == 200


@pytest.mark.parametrize(
    ("host", "key"), [("0.0.0.0", None), ("::", None), ("192.168.1.5", None), ("my.example", None)]
)
def test_others_are_not_let_in_without_a_key(host: str, key: str | None) -> None:
    with pytest.raises(InputError, match="needs an API key"):
        check_exposure(host, key)
    check_exposure(host, KEY)


@pytest.mark.parametrize("key", ["short", "a" * 15, "correct horse battery staple", "ключключключключ"])
def test_a_key_that_can_be_guessed_or_not_be_sent_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="is not of 16 or more plain characters") as told:
        check_exposure("127.0.0.1", key)
    assert key not in str(told.value)
    check_exposure("localhost", None)


_WORDS = some.one_of(
    some.none(), some.booleans(), some.integers(), some.floats(), some.text(max_size=40),
    some.lists(some.integers(), max_size=2),
    some.dictionaries(some.text(max_size=5), some.integers(), max_size=2),
    some.sampled_from(["24x24", "8x8", "png", "euler", "b64_json", "auto", 1, 2, 8, 1.5, "dpm++", ""]),
)  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    some.sampled_from(
        [
            (GENERATE, sorted(ImageRequest.model_fields)),
            (TXT2IMG, sorted(TextToImage.model_fields)),
            (EDITS, sorted(EditRequest.model_fields)),
            (IMG2IMG, sorted(ImageToImage.model_fields)),
        ]
    ),
    some.data(),
)
def test_no_request_breaks_the_server(pretended: Any, route: tuple[str, list[str]], data: Any) -> None:
    path, fields = route
    body = data.draw(some.dictionaries(some.sampled_from(fields), _WORDS, max_size=8))
    answer = pretended.post(path, {"prompt": "a", **body})
    assert answer.status in (200, 400, 404), (body, answer)
    assert answer.status == 200 or len(answer.body) < 2000


def test_a_server_that_was_pestered_still_draws(pretended: Any) -> None:
    with socket.create_connection(("127.0.0.1", pretended.port), timeout=10) as raw:
        raw.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 50)
        assert b"400" in raw.recv(100)
    picture = base64.b64decode(pretended.draw(size="16x8", seed=3).json["data"][0]["b64_json"])
    with Image.open(io.BytesIO(picture)) as opened:
        assert opened.size == (16, 8) and json.loads(opened.info["lineardit"])["seed"] == 3
