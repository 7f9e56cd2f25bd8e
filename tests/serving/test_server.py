"""A server under load, while its clients leave, while its workers die, and while it is told to stop."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lineardit.cli.app import main

GENERATE, TXT2IMG = "/v1/images/generations", "/sdapi/v1/txt2img"


def reply(connection: Any) -> tuple[int, dict[str, Any]]:
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def colour(encoded: str) -> tuple[int, ...]:
    """Seed, pictures drawn together, process."""
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        return tuple(picture.tobytes()[:3])


def events(connection: Any) -> list[dict[str, Any]]:
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def test_a_stream_tells_the_queue_and_every_step_to_those_who_ask(pretended: Any, tmp_path: Path) -> None:
    before = pretended.send(GENERATE, {"prompt": f"until {tmp_path / 'go'}"})
    pretended.until(lambda: pretended.metric("lineardit_pictures_drawing") == 1)
    wanted = {
        "prompt": "slow",
        "num_inference_steps": 5,
        "stream": True,
        "progress": True,
        "seed": 4,
        "size": "8x8",
    }
    asked = pretended.send(GENERATE, wanted)
    pretended.until(lambda: pretended.metric("lineardit_pictures_waiting") == 1)
    (tmp_path / "go").touch()
    found = events(asked)
    assert reply(before)[0] == 200
    kinds = [event["type"] for event in found]
    assert kinds[:2] == ["lineardit.waiting", "lineardit.note"] and kinds[-1] == "image_generation.completed"
    steps = [event for event in found if event["type"] == "lineardit.progress"]
    assert steps[-1]["step"] == 5 and [each["step"] for each in steps] == sorted(
        each["step"] for each in steps
    )
    assert colour(steps[-1]["preview"])[0] == 5 and colour(found[-1]["b64_json"])[0] == 4
    plain = events(pretended.send(GENERATE, {"prompt": "a", "stream": True}))
    assert [event["type"] for event in plain] == ["image_generation.completed"]


def test_a_mishap_in_a_stream_is_its_last_event(pretended: Any) -> None:
    found = events(pretended.send(GENERATE, {"prompt": "fail OutOfMemory", "stream": True}))
    assert [event["type"] for event in found] == ["error"] and found[0]["error"]["code"] == "out_of_memory"


def test_when_the_queue_is_full_others_are_told_when_to_come_back(pretended: Any, tmp_path: Path) -> None:
    sent = [pretended.send(GENERATE, {"prompt": f"until {tmp_path / 'go'}"})]
    pretended.until(lambda: pretended.metric("lineardit_pictures_drawing") == 1)
    sent += [pretended.send(GENERATE, {"prompt": "a", "n": 2, "seed": seed}) for seed in (10, 20)]
    pretended.until(lambda: pretended.metric("lineardit_pictures_waiting") == 4)
    refused = pretended.draw()
    assert refused.status == 429 and refused.code == "queue_full" and int(refused.headers["retry-after"]) >= 1
    assert pretended.get("/readyz").status == 503 and pretended.get("/healthz").status == 200
    (tmp_path / "go").touch()
    answers = [reply(connection) for connection in sent]
    assert [status for status, _ in answers] == [200, 200, 200]
    assert [[colour(each["b64_json"])[0] for each in body["data"]] for _, body in answers[1:]] == [
        [10, 11],
        [20, 21],
    ]
    assert pretended.get("/readyz").status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_drawn_for_no_longer(pretended: Any, stream: bool) -> None:
    before = pretended.metric("lineardit_requests_cancelled_total")
    leaving = {"prompt": "slow", "num_inference_steps": 1000, "stream": stream}
    drawn, waiting = pretended.send(GENERATE, leaving), pretended.send(GENERATE, leaving)
    pretended.until(lambda: pretended.metric("lineardit_pictures_waiting") == 1)
    waiting.close()
    pretended.until(lambda: pretended.metric("lineardit_pictures_waiting") == 0)
    drawn.close()
    pretended.until(lambda: pretended.metric("lineardit_pictures_drawing") == 0)
    assert pretended.draw().status == 200
    pretended.until(lambda: pretended.metric("lineardit_requests_cancelled_total") == before + 2)


def test_a1111s_progress_and_interrupt_are_about_ones_own_task(pretended: Any) -> None:
    task = pretended.send(TXT2IMG, {"prompt": "slow", "steps": 1000, "seed": 3, "n_iter": 2})
    other = pretended.send(GENERATE, {"prompt": "slow", "num_inference_steps": 2})
    pretended.until(lambda: pretended.get("/sdapi/v1/progress").json["state"]["sampling_step"] > 1)
    told = pretended.get("/sdapi/v1/progress").json
    assert 0 < told["progress"] < 1 and told["state"]["job_count"] == 1
    assert told["state"]["sampling_steps"] == 1000 and colour(told["current_image"])
    assert pretended.post("/sdapi/v1/interrupt", b"").status == 200
    status, body = reply(task)
    assert status == 200 and body["images"] == [] and json.loads(body["info"])["seed"] == 3
    assert reply(other)[0] == 200
    idle = pretended.get("/sdapi/v1/progress").json
    assert idle["progress"] == 0 and idle["current_image"] is None


@pytest.mark.parametrize("trusted", [True, False])
def test_behind_a_trusted_proxy_a_task_belongs_to_the_address_that_it_names(
    start_pretended: Callable[..., Any], trusted: bool
) -> None:
    more = {"trusted_proxies": ("127.0.0.0/8",)} if trusted else {}
    with start_pretended(limits={"steps": 1000}, **more) as server:
        # Whoever asks can write the first address; the proxy adds the last.
        mine, theirs = ({"X-Forwarded-For": f"203.0.113.9, 203.0.113.{last}"} for last in (1, 2))
        task = server.send(TXT2IMG, {"prompt": "slow", "steps": 1000}, mine)
        server.until(lambda: server.get("/sdapi/v1/progress", mine).json["state"]["sampling_step"] > 1)
        seen = server.get("/sdapi/v1/progress", theirs).json["state"]["job_count"]
        assert seen == (0 if trusted else 1)
        assert server.post("/sdapi/v1/interrupt", b"", mine).status == 200
        assert reply(task)[1]["images"] == []


@pytest.mark.parametrize("address", ["*", "proxy.example", "10.0.0.1/8"])
def test_a_trusted_proxy_is_an_address_or_a_network(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--trusted-proxy", address]) == 2
    assert f"{address!r} is no address" in capfd.readouterr().err


def test_a_connection_that_sends_no_whole_head_is_closed(start_pretended: Callable[..., Any]) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    with start_pretended(limits={"body_seconds": 1.0}) as server:
        drawn = server.send(GENERATE, {"prompt": "slow", "num_inference_steps": 40})
        silent, begun, second = (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(3)
        )
        second.sendall(head + b"\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += second.recv(1000)
        assert answer.startswith(b"HTTP/1.1 200")
        for part in range(4):  # a byte now and then is no head either
            for connection in (begun, second):
                connection.sendall(head[part : part + 1])
            time.sleep(0.05)
        for connection in (silent, begun, second):
            assert connection.recv(1000) == b""
            connection.close()
        assert reply(drawn)[0] == 200  # after 2 s, but its head had come


def test_many_clients_each_get_their_own_pictures(pretended: Any) -> None:
    waiting, answers = list(range(12)), {}
    while waiting:
        sent = {
            seed: pretended.send(GENERATE, {"prompt": "a", "seed": seed, "size": "16x8"}) for seed in waiting
        }
        for seed, connection in sent.items():
            status, body = reply(connection)
            assert status in (200, 429)
            if status == 200:
                answers[seed] = colour(body["data"][0]["b64_json"])[0]
        waiting = [seed for seed in waiting if seed not in answers]
    assert answers == {seed: seed for seed in range(12)}


def test_a_slow_reader_holds_up_nobody(pretended: Any) -> None:
    wanted = {
        "prompt": "a",
        "size": "64x64",
        "n": 3,
        "stream": True,
        "progress": True,
        "num_inference_steps": 200,
    }
    with socket.create_connection(("127.0.0.1", pretended.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(wanted).encode()
        head = f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert pretended.draw().status == 200
        pretended.until(lambda: pretended.metric("lineardit_pictures_drawing") == 0)


def test_a_worker_that_is_killed_costs_nobody_a_picture(
    start_pretended: Callable[..., Any], tmp_path: Path
) -> None:
    with start_pretended() as server:
        sent = server.send(GENERATE, {"prompt": f"until {tmp_path / 'go'}", "seed": 8})
        server.until(lambda: server.metric("lineardit_pictures_drawing") == 1)
        os.kill(server.worker, signal.SIGKILL)
        (tmp_path / "go").touch()
        status, body = reply(sent)
        assert status == 200 and colour(body["data"][0]["b64_json"])[:2] == (8, 1)
        assert server.metric("lineardit_worker_restarts_total") == 1
        assert server.draw("die").code == "worker_lost"
        assert server.draw().status == 200


def test_a_request_that_takes_too_long_is_ended(start_pretended: Callable[..., Any]) -> None:
    with start_pretended(limits={"seconds": 0.5, "steps": 1000}) as server:
        late = server.draw("slow", num_inference_steps=1000)
        assert late.status == 503 and late.code == "too_late"
        server.until(lambda: server.metric("lineardit_pictures_drawing") == 0)


def test_told_to_stop_it_finishes_what_it_accepted_and_frees_its_port(
    start_pretended: Callable[..., Any], tmp_path: Path
) -> None:
    with start_pretended(batch=1) as server:
        prompts = (f"until {tmp_path / 'go'}", "a", "a")
        sent = [
            server.send(GENERATE, {"prompt": prompt, "seed": seed})
            for seed, prompt in enumerate(prompts, start=1)
        ]
        server.until(lambda: server.metric("lineardit_pictures_waiting") == 2)
        idle = server.connect()
        idle.connect()
        server.process.send_signal(signal.SIGTERM)
        (tmp_path / "go").touch()
        answers = [reply(connection) for connection in sent]
        assert [colour(body["data"][0]["b64_json"])[0] for _, body in answers] == [1, 2, 3]
        assert server.process.wait(20) == 0
        idle.close()
    with socket.create_server(("127.0.0.1", server.port)):
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(server.worker, 0)


def test_what_does_not_finish_in_time_is_told_so(start_pretended: Callable[..., Any]) -> None:
    with start_pretended(drain_seconds=0.3, limits={"steps": 1000}) as server:
        sent = server.send(GENERATE, {"prompt": "slow", "num_inference_steps": 1000})
        server.until(lambda: server.metric("lineardit_pictures_drawing") == 1)
        server.process.send_signal(signal.SIGINT)
        status, body = reply(sent)
        assert status == 503 and body["error"]["code"] == "closing"
        assert server.process.wait(30) == 0


def test_a_second_signal_ends_it_at_once_and_no_worker_stays(start_pretended: Callable[..., Any]) -> None:
    with start_pretended(limits={"steps": 1000}) as server:
        sent = server.send(GENERATE, {"prompt": "slow", "num_inference_steps": 1000})
        server.until(lambda: server.metric("lineardit_pictures_drawing") == 1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        sent.close()
    with pytest.raises(ProcessLookupError):
        os.kill(server.worker, 0)


def test_a_server_that_is_killed_leaves_no_worker(start_pretended: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError), start_pretended() as server:
        server.process.kill()
    end = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:
            os.kill(server.worker, 0)
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gone", "--port", "0"], "gone is no folder"),
        (["--host", "0.0.0.0"], "host=0.0.0.0 can be reached from other machines, which needs an API key."),
        (
            ["--host", "203.0.113.9", "--api-key-file", "KEY"],
            "host=203.0.113.9 port=7860 cannot be listened on",
        ),
        (["--api-key-file", "gone"], "gone cannot be read as a text"),
        (["--queue", "0"], "waiting=0: Input should be greater than or equal to 1"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(
    arguments: list[str], message: str, tmp_path: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("correct-horse-battery-staple\n")
    assert main(["serve", *(str(key) if word == "KEY" else word for word in arguments)]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_without_its_extra_the_verb_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lineardit.cli.serve.find_spec", lambda name: None)
    assert main(["serve"]) == 2
    error = capsys.readouterr().err
    assert error == "error: lineardit serve needs the package fastapi: pip install 'lineardit[serve]'\n"


def test_the_servers_process_never_imports_torch() -> None:
    code = "import sys, lineardit.serving.server; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
