"""Real clients against a live server whose model draws: OpenAI's own package, and a script for A1111."""

import base64
import io
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from lineardit.pipeline import Pipeline

CAT = "a red apple left of a cat"


def pixels(encoded: str) -> bytes:
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        return picture.convert("RGB").tobytes()


@pytest.fixture(scope="module")
def client(served: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_model, device="cpu")


def test_the_pictures_are_those_of_the_pipeline_to_the_bit(client: openai.OpenAI, pipe: Pipeline) -> None:
    ours = {"seed": 7, "negative_prompt": "fog", "num_inference_steps": 2, "guidance_scale": 2.5}
    answer = client.images.generate(prompt=CAT, model="tiny", n=2, size="40x16", extra_body=ours)
    assert answer.data is not None and answer.size == "40x16" and answer.output_format == "png"
    expected = pipe(CAT, "fog", width=40, height=16, num_images_per_prompt=2, seed=7, num_inference_steps=2,
                    guidance_scale=2.5).images  # fmt: skip
    assert [pixels(datum.b64_json or "") for datum in answer.data] == [each.tobytes() for each in expected]
    assert [datum.model_dump()["seed"] for datum in answer.data] == [7, 8]


def test_a_stream_ends_in_the_picture_that_an_answer_would_hold(
    client: openai.OpenAI, pipe: Pipeline
) -> None:
    events = list(client.images.generate(prompt=CAT, stream=True, partial_images=2, extra_body={"seed": 3}))
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events if hasattr(event, "partial_image_index")] == [0, 1]
    assert pixels(events[-1].b64_json) == pipe(CAT, seed=3).images[0].tobytes()
    assert len({pixels(event.b64_json) for event in events}) == 3
    again = client.images.generate(prompt=CAT, extra_body={"seed": 3})
    assert again.data is not None and again.data[0].b64_json == events[-1].b64_json


def encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_picture_over_another_is_that_of_the_pipeline_to_the_bit(
    client: openai.OpenAI, served: Any, pipe: Pipeline
) -> None:
    start = Image.linear_gradient("L").resize((80, 48)).convert("RGB")
    address = f"data:image/png;base64,{encoded(start)}"
    body = {"prompt": CAT, "images": [{"image_url": address}], "strength": 0.7, "seed": 4, "size": "40x24"}
    answer = client.post("/images/edits", body=body, cast_to=openai.types.ImagesResponse)
    expected = pipe(CAT, image=start, strength=0.7, seed=4, width=40, height=24).images[0].tobytes()
    assert answer.data is not None and pixels(answer.data[0].b64_json or "") == expected
    usual = client.post("/images/edits", body={**body, "size": "auto"}, cast_to=openai.types.ImagesResponse)
    assert usual.size == "32x16"  # about as many pixels as 24 x 24, and about as oblong
    wanted = {"prompt": CAT, "init_images": [encoded(start)], "denoising_strength": 0.7, "seed": 4,
              "width": 40, "height": 24, "resize_mode": 1}  # fmt: skip
    made = served.post("/sdapi/v1/img2img", wanted).json
    assert pixels(made["images"][0]) == expected and "init_images" not in made["parameters"]
    found = served.post("/sdapi/v1/png-info", {"image": made["images"][0]}).json
    assert found["lineardit"]["strength"] == 0.7 and "Denoising strength: 0.7" in found["info"]
    events = served.post("/v1/images/edits", {**body, "stream": True, "partial_images": 1}).body.decode()
    names = [line[7:] for line in events.splitlines() if line.startswith("event: ")]
    assert names == ["image_edit.partial_image", "image_edit.completed"]


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_other_formats_are_what_they_say(client: openai.OpenAI, name: str) -> None:
    answer = client.images.generate(prompt=CAT, output_format=name, size="24x24", output_compression=80)
    assert answer.data is not None
    with Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or ""))) as picture:
        assert picture.format == name.upper() and picture.size == (24, 24)


def test_the_model_is_listed_without_its_place(client: openai.OpenAI, tiny_model: Path) -> None:
    (model,) = client.models.list()
    assert model.id == "tiny" and str(tiny_model.parent) not in model.model_dump_json()
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")


def test_mistakes_are_errors_that_the_client_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="multiples of 8 pixels") as told:
        client.images.generate(prompt=CAT, size="20x20")
    assert told.value.param == "size" and told.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt=CAT, model="dall-e-3")
    with pytest.raises(openai.BadRequestError, match="unknown field"):
        client.images.generate(prompt=CAT, extra_body={"seeed": 1})


def test_a_seed_is_drawn_where_none_is_given_and_makes_the_picture_again(client: openai.OpenAI) -> None:
    first, second = (client.images.generate(prompt=CAT, size="24x24").data for _ in range(2))
    assert first is not None and second is not None and first[0].b64_json != second[0].b64_json
    seed = first[0].model_dump()["seed"]
    again = client.images.generate(prompt=CAT, size="24x24", extra_body={"seed": seed}).data
    assert again is not None and again[0].b64_json == first[0].b64_json


def test_a_script_for_a1111_draws_reads_the_settings_back_and_draws_the_same(served: Any) -> None:
    wanted = {"prompt": CAT, "negative_prompt": "fog", "steps": 2, "width": 40, "height": 16, "cfg_scale": 4,
              "sampler_name": "Euler", "seed": 5, "batch_size": 2, "n_iter": 1, "restore_faces": False,
              "override_settings": {}, "styles": []}  # fmt: skip
    answer = served.post("/sdapi/v1/txt2img", wanted)
    first, second = answer.json["images"]
    found = served.post("/sdapi/v1/png-info", {"image": f"data:image/png;base64,{second}"}).json
    assert found["lineardit"]["seed"] == 6 and found["info"].startswith(
        f"{CAT}\nNegative prompt: fog\nSteps: 2"
    )
    read = found["parameters"]
    repeated = {"prompt": read["prompt"], "negative_prompt": "fog", "seed": int(read["seed"]),
                "steps": int(read["num_inference_steps"]), "cfg_scale": float(read["guidance_scale"]),
                "sampler_name": read["sampler"], "width": 40, "height": 16}  # fmt: skip
    assert served.post("/sdapi/v1/txt2img", repeated).json["images"] == [second] != [first]


def test_the_picture_is_the_file_that_the_command_line_writes(
    served: Any, tiny_model: Path, tmp_path: Path
) -> None:
    from lineardit.cli.app import main

    place = tmp_path / "cat.png"
    assert main(["generate", CAT, "--model", str(tiny_model), "--seed", "9", "-o", str(place)]) == 0
    data = served.draw(CAT, seed=9).json["data"][0]["b64_json"]
    with Image.open(place) as written, Image.open(io.BytesIO(base64.b64decode(data))) as answered:
        assert written.tobytes() == answered.tobytes()
        # The server does not tell where the model lies.
        assert answered.info["parameters"] == written.info["parameters"].replace(str(tiny_model), "tiny")
