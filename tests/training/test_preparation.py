"""From pictures to shards and back: the latents and vectors of the model, kept, found damaged, made again."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lineardit.config.data import MOST_PIXELS, BucketConfig, CheckConfig
from lineardit.data import ledger as ledgers
from lineardit.data.folder import FolderSource
from lineardit.data.labels import ClassRule
from lineardit.data.ledger import Ledger
from lineardit.data.pictures import to_pixels
from lineardit.data.prepared import PreparedData
from lineardit.data.shards import write_shard
from lineardit.data.survey import Survey, survey
from lineardit.errors import CheckpointError, ConfigError, InputError, OutputError
from lineardit.interop.native import load_autoencoder, read_model, save_autoencoder, save_model
from lineardit.interop.text import load_text_encoder
from lineardit.training import preparation
from lineardit.training.preparation import Outcome, encode, open_ledger, token_pixels
from lineardit.training.probe import EMPTY, PICTURE, WORDS

SETTINGS = {"sizes": [24]}
DEEP = "[" * 100_000
"""No JSON, and deeper than its reader goes."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "PICTURES_PER_SHARD", 3)
    monkeypatch.setattr(preparation, "ENCODED_AT_ONCE", 2)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(7):
        sides = (24, 24) if number < 5 else (16, 32)
        levels = np.random.default_rng(number).integers(0, 256, (*sides, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{number}.png")
        (folder / f"{number}.json").write_text(
            json.dumps({"captions": {"a cat": 1.0, f"two dogs {number}": 3.0}})
        )
    return folder


Prepare = Callable[..., Outcome]


@pytest.fixture
def run(pictures: Path, tmp_path: Path, tiny_model: Path) -> Prepare:
    def prepared(
        model: Path = tiny_model, settings: Mapping[str, object] = SETTINGS, processes: int = 1
    ) -> Outcome:
        buckets = BucketConfig(sizes=(24,), step=8)
        found = survey(FolderSource(pictures), buckets, CheckConfig())
        ledger = open_ledger(tmp_path / "out", settings)
        return encode(found, ledger, model, max_pixels=MOST_PIXELS, processes=processes)

    return prepared


def test_shards_hold_the_model_s_latents_and_vectors(
    run: Prepare, pictures: Path, tmp_path: Path, tiny_model: Path
) -> None:
    outcome = run()
    assert (outcome.shards, outcome.made, outcome.pictures, outcome.lost) == (3, 3, 7, [])
    data = PreparedData(tmp_path / "out")
    data.check()
    assert dict(zip(data.buckets, data.counts, strict=True)) == {(16, 32): 2, (24, 24): 5}
    assert (data.latent_channels, data.stride, data.text_width) == (4, 4, 12)
    autoencoder, text_encoder = load_autoencoder(tiny_model), load_text_encoder(tiny_model)
    for number in range(7):
        sample = data.sample(number)
        name = sample.key.removesuffix(".png")
        pixels = to_pixels(Image.open(pictures / sample.key))
        with torch.no_grad():
            expected = autoencoder.encode(pixels[None])[0]
        found = data.latents(number)
        assert found.dtype == torch.bfloat16
        assert float((found.float() - expected).norm() / expected.norm()) < 0.03
        assert sample.captions == (("a cat", 1.0), (f"two dogs {name}", 3.0))
        for which, caption in enumerate(sample.captions):
            embeddings, mask = text_encoder.encode([caption.text])
            torch.testing.assert_close(
                data.vectors(number, which).float(), embeddings[0][mask[0]], rtol=0.01, atol=0.01
            )
    assert set(data.probe()) == {PICTURE, WORDS, EMPTY}
    with pytest.raises(IndexError):
        data.latents(7)


def test_what_is_there_is_kept_and_only_what_changed_is_made_again(
    run: Prepare, pictures: Path, tmp_path: Path
) -> None:
    run()
    before = PreparedData(tmp_path / "out")
    assert run().made == 0
    assert PreparedData(tmp_path / "out").digest == before.digest
    (pictures / "6.json").write_text('"another"')
    latents = tmp_path / "out" / "latents" / "shard-00000.safetensors"
    written = latents.stat().st_mtime_ns
    assert run().made == 1
    after = PreparedData(tmp_path / "out")
    assert after.sample(1).captions == (("another", 1.0),) and after.digest != before.digest
    assert latents.stat().st_mtime_ns == written, "only its text has changed"
    for name in ("5.png", "6.png"):
        (pictures / name).unlink()
    assert run().pictures == 5
    assert len(list((tmp_path / "out" / "latents").iterdir())) == 2


class PicklingPool(ThreadPoolExecutor):
    """What goes to and from another process, without one."""

    def submit(self, work: Callable[..., Any], /, *jobs: Any, **_: Any) -> Future[Any]:
        return super().submit(lambda: pickle.loads(pickle.dumps(work(*pickle.loads(pickle.dumps(jobs))))))


def test_what_processes_do_together_is_what_one_does(
    run: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    alone = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    asked: list[int] = []

    @contextmanager
    def pool(count: int) -> Iterator[PicklingPool]:
        asked.append(count)
        with PicklingPool(1) as threads:
            yield threads

    monkeypatch.setattr(preparation, "worker_processes", pool)
    shutil.rmtree(tmp_path / "out")
    assert run(processes=8).made == 3
    assert asked == [3], "no more processes than shards"
    assert alone == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_a_stopped_run_goes_on_where_it_was(
    run: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = preparation.make_shard

    def stopped(job: preparation.Job) -> object:
        if job.name == "shard-00001.safetensors":
            raise KeyboardInterrupt
        return make(job)

    monkeypatch.setattr(preparation, "make_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        run()
    with pytest.raises(CheckpointError, match="out was not finished: .* Run lineardit prepare PICTURES -o"):
        PreparedData(tmp_path / "out")
    monkeypatch.setattr(preparation, "make_shard", make)
    assert run().made == 2
    assert len(PreparedData(tmp_path / "out")) == 7


@pytest.mark.parametrize("part", ["latents", "text"])
def test_a_damaged_shard_is_named_and_made_again(run: Prepare, tmp_path: Path, part: str) -> None:
    run()
    path = tmp_path / "out" / part / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    data = PreparedData(tmp_path / "out")
    assert data.latents(0) is not None
    with pytest.raises(CheckpointError, match=f"{part}/shard-00001.safetensors is damaged: .* run lineardit"):
        data.check()
    with pytest.raises(CheckpointError, match="shard-00001"):
        data.sample(2)
    assert run().made == 1
    PreparedData(tmp_path / "out").check()


def test_a_picture_that_goes_bad_in_between_is_left_out_and_named(
    run: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = preparation.decode

    def decode(content: bytes, max_pixels: int) -> Image.Image:
        image = real(content, max_pixels)
        if image.size == (32, 16):
            raise preparation.BadPicture("truncated: the file ends before the picture does")
        if image.getpixel((0, 0)) == Image.open(tmp_path / "pictures" / "1.png").getpixel((0, 0)):
            raise OSError(2, "No such file or directory")
        return image

    monkeypatch.setattr(preparation, "decode", decode)
    outcome = run()
    assert sorted(problem.key for problem in outcome.lost) == ["1.png", "5.png", "6.png"]
    assert outcome.pictures == 4
    data = PreparedData(tmp_path / "out")
    assert [data.sample(number).key for number in range(4)] == ["0.png", "2.png", "3.png", "4.png"]
    assert data.buckets == ((24, 24),)


def test_captions_that_are_cut_are_counted(run: Prepare, pictures: Path) -> None:
    (pictures / "0.json").write_text(json.dumps(" ".join(["dog"] * 40)))
    assert run().cut == 1


def test_other_settings_another_model_and_foreign_folders_are_refused(
    run: Prepare, tmp_path: Path, tiny_model: Path
) -> None:
    run()
    with pytest.raises(OutputError, match=r"prepared with other settings \(sizes\). Remove it"):
        run(settings={"sizes": [32]})
    other = read_model(tiny_model)
    with torch.no_grad():
        for tensor in other.components["autoencoder"].tensors.values():
            tensor.mul_(1.5)
    changed = tmp_path / "changed"
    tokenizer = (tiny_model / "tokenizer.json").read_bytes()
    save_model(changed, other.components, about=other.about, extra_files={"tokenizer.json": tokenizer})
    with pytest.raises(ConfigError, match="prepared with another autoencoder than that of .*changed"):
        run(model=changed)
    with pytest.raises(OutputError, match="pictures holds something else, such as 0.json"):
        Ledger(tmp_path / "pictures", {})
    for content in ("{", DEEP):
        (tmp_path / "out" / "shards.json").write_text(content)
        with pytest.raises(CheckpointError, match="shards.json is damaged. Remove"):
            run()


def test_pictures_of_which_none_can_be_used_are_refused(run: Prepare, pictures: Path, tmp_path: Path) -> None:
    for path in pictures.glob("*.png"):
        path.write_text("no picture")
    with pytest.raises(InputError, match="none of the 7 pictures can be used: 7 unreadable"):
        run()


def test_a_model_says_its_pixels_per_token_and_its_size(tiny_model: Path, tmp_path: Path) -> None:
    assert token_pixels(tiny_model) == (8, 24)
    model = read_model(tiny_model)
    save_model(tmp_path / "half", {"autoencoder": model.components["autoencoder"]})
    with pytest.raises(CheckpointError, match="half holds no transformer, no text_encoder"):
        token_pixels(tmp_path / "half")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"format": 1}', '{"format": 2}', '{"format": 1, "shards": 3}', DEEP],
    ids=["cut", "list", "empty", "format", "shards", "deep"],
)
def test_a_damaged_index_is_named(run: Prepare, tmp_path: Path, content: str) -> None:
    run()
    (tmp_path / "out" / "prepared.json").write_text(content)
    with pytest.raises(CheckpointError, match="prepared.json"):
        PreparedData(tmp_path / "out")


def test_captions_that_are_no_json_are_named(run: Prepare, tmp_path: Path) -> None:
    run()
    path = tmp_path / "out" / "text" / "shard-00000.safetensors"
    index = json.loads((tmp_path / "out" / "prepared.json").read_text())
    index["shards"][0]["text"] = write_shard(path, load_file(path), {"samples": DEEP})
    (tmp_path / "out" / "prepared.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="shard-00000.safetensors is damaged. .* run lineardit prepare"):
        PreparedData(tmp_path / "out").check()


def sorted_by_class(pictures: Path) -> Survey:
    """The pictures, moved into a folder for each of two classes, and looked at."""
    for number in range(7):
        folder = pictures / ("even" if number % 2 == 0 else "odd")
        folder.mkdir(exist_ok=True)
        for suffix in (".png", ".json"):
            (pictures / f"{number}{suffix}").rename(folder / f"{number}{suffix}")
    source = FolderSource(pictures, classes=ClassRule())
    return survey(source, BucketConfig(sizes=(24,), step=8), CheckConfig(classes=True))


def test_classes_go_along_and_a_new_one_makes_only_what_has_words_again(
    pictures: Path, tmp_path: Path, tiny_model: Path
) -> None:
    found = sorted_by_class(pictures)
    out = tmp_path / "out"
    encode(found, open_ledger(out, SETTINGS), tiny_model, max_pixels=MOST_PIXELS)
    data = PreparedData(out)
    assert data.classes == ("even", "odd")
    for number in range(len(data)):
        key = data.sample(number).key
        assert data.classes[data.label(number)] == key.partition("/")[0]
    found.entries[0] = found.entries[0]._replace(label="all")
    before = {path: path.stat().st_mtime_ns for path in (out / "latents").iterdir()}
    outcome = encode(found, open_ledger(out, SETTINGS), tiny_model, max_pixels=MOST_PIXELS)
    again = PreparedData(out)
    assert outcome.made == 1 and again.classes == ("all", "even", "odd") and again.digest != data.digest
    assert before == {path: path.stat().st_mtime_ns for path in (out / "latents").iterdir()}


def test_an_autoencoder_alone_encodes_pictures_with_classes_only(
    pictures: Path, run: Prepare, tmp_path: Path, tiny_model: Path
) -> None:
    alone = save_autoencoder(tmp_path / "alone", load_autoencoder(tiny_model))
    assert token_pixels(alone, classes=True) == (4, 1024)
    with pytest.raises(CheckpointError, match="holds no transformer, no text_encoder"):
        token_pixels(alone)
    with pytest.raises(CheckpointError, match="holds no transformer, no text_encoder"):
        run(alone)
    found = sorted_by_class(pictures)
    (tmp_path / "out").rename(tmp_path / "begun")
    encode(found, open_ledger(tmp_path / "out", SETTINGS), alone, max_pixels=MOST_PIXELS)
    data = PreparedData(tmp_path / "out")
    assert (data.text_width, len(data), data.label(0)) == (0, 7, 0)
    assert [caption.text for caption in data.sample(0).captions][0] == "a cat" and data.vectors(
        0, 0
    ).numel() == 0


def test_captions_are_made_again_when_a_text_encoder_comes_or_goes(
    pictures: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = save_autoencoder(tmp_path / "alone", load_autoencoder(tiny_model))
    text_encoder = load_text_encoder(tiny_model)
    found, out = sorted_by_class(pictures), tmp_path / "out"

    def prepared(model: Path) -> int:
        return encode(found, open_ledger(out, SETTINGS), model, max_pixels=MOST_PIXELS).made

    def stopped(ledger: Ledger) -> None:
        raise KeyboardInterrupt

    prepared(alone)
    before = {path: path.stat().st_mtime_ns for path in (out / "latents").iterdir()}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Ledger, "left", stopped)
        prepared(tiny_model)
    with pytest.raises(CheckpointError, match="out was not finished"):
        PreparedData(out)
    assert prepared(tiny_model) == len(before) and prepared(tiny_model) == 0
    data = PreparedData(out)
    data.check()
    assert data.text_width == 12 and set(data.probe()) == {PICTURE, WORDS, EMPTY}
    embeddings, mask = text_encoder.encode([data.sample(3).captions[1].text])
    torch.testing.assert_close(data.vectors(3, 1).float(), embeddings[0][mask[0]], rtol=0.01, atol=0.01)
    assert prepared(alone) == len(before)
    data = PreparedData(out)
    assert data.text_width == 0 and set(data.probe()) == {PICTURE} and data.vectors(3, 1).numel() == 0
    assert before == {path: path.stat().st_mtime_ns for path in (out / "latents").iterdir()}


def test_pictures_without_classes_say_so(run: Prepare, tmp_path: Path) -> None:
    run()
    with pytest.raises(InputError, match="has no classes. Prepare the pictures with --classes"):
        PreparedData(tmp_path / "out").label(0)
