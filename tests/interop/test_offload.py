"""Weights that stay in their files until they are at work: the same pictures, in little memory."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from lineardit.config.models import TransformerConfig
from lineardit.errors import CheckpointError, InputError, MemoryLimitError, NotFiniteError
from lineardit.interop import bound as bounds
from lineardit.interop.assembly import assemble_text_encoder
from lineardit.interop.bound import Fit, MemoryBound
from lineardit.interop.memory import transformer_bytes
from lineardit.interop.places import open_place
from lineardit.interop.room import LONGEST_PROMPT
from lineardit.interop.room import _prompt_bytes as prompt_bytes
from lineardit.interop.stored import LazyTensors
from lineardit.kernels import native
from lineardit.nn.attention import CrossAttention
from lineardit.nn.offload import Offloaded, offloaded
from lineardit.nn.packed import PackedLinear
from lineardit.nn.wide import Linear
from lineardit.pipeline import Pipeline
from lineardit.transformer.generation import StepCache
from lineardit.transformer.model import Transformer

CALL: dict[str, Any] = {"height": 80, "width": 48, "num_inference_steps": 3, "output_type": "pt"}
RED = Image.new("RGB", (48, 80), "red")
HELD = 10**6


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "resident_bytes", lambda: HELD)
    monkeypatch.setattr(bounds, "UNTOLD", 0.0)
    monkeypatch.setattr("lineardit.interop.room._prompt_bytes", lambda _: 0)


@pytest.fixture(params=["diffusers", "native"])
def folder(request: pytest.FixtureRequest) -> Path:
    place: Path = request.getfixturevalue("published" if request.param == "diffusers" else "tiny_model")
    return place


def parts(pipe: Pipeline) -> dict[str, list[Offloaded]]:
    text = getattr(pipe.text_encoder, "model", torch.nn.Identity())
    networks = {"text": text, "blocks": pipe.transformer, **dict(pipe.autoencoder.named_children())}
    return {name: offloaded(network) for name, network in networks.items()}


def in_memory(pipe: Pipeline) -> set[str]:
    return {name for name, found in parts(pipe).items() if any(each.is_loaded for each in found)}


def in_own_memory(text_encoder: Any) -> None:
    """Copy the weights: as transformers maps them they lie askew, and products differ in the last bit."""
    if isinstance(model := getattr(text_encoder, "model", None), torch.nn.Module):
        model.load_state_dict({name: each.clone() for name, each in model.state_dict().items()}, assign=True)


def whole(folder: Path, dtype: str = "fp32") -> Pipeline:
    """The model with all of its weights in memory."""
    pipe = Pipeline.from_pretrained(folder, device="cpu", dtype=dtype)
    in_own_memory(pipe.text_encoder)
    return pipe


class Seen:
    """Which parts were read how often, and the most bytes of theirs that were in memory."""

    def __init__(self, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: Counter[tuple[str, int]] = Counter()
        self.most = 0
        names = {
            id(each): (name, number)
            for name, found in parts(pipe).items()
            for number, each in enumerate(found)
        }
        every = [each for found in parts(pipe).values() for each in found]
        enter = Offloaded.__enter__

        def watched(part: Offloaded) -> None:
            self.reads[names[id(part)]] += not part.is_loaded
            enter(part)
            self.most = max(self.most, sum(each.size_bytes for each in every if each.is_loaded))

        monkeypatch.setattr(Offloaded, "__enter__", watched)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_offloaded_model_draws_the_same_with_one_network_in_memory_at_a_time(
    folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = whole(folder, dtype)("two dogs", **CALL, image=RED).images
    pipe = Pipeline.from_pretrained(folder, device="cpu", dtype=dtype, offload=True)
    assert in_memory(pipe) == set()
    for name in ("encoder", "decoder", "blocks"):
        assert parts(pipe)[name], f"nothing of {name} is offloaded"
    seen = Seen(pipe, monkeypatch)
    assert torch.equal(pipe("two dogs", **CALL, image=RED).images, wanted)
    assert set(seen.reads.values()) == {1}, "every weight is read once for a picture"
    assert in_memory(pipe) == {"decoder"}
    largest = max(sum(each.size_bytes for each in found) for found in parts(pipe).values())
    assert seen.most == largest
    assert torch.equal(pipe("two dogs", **CALL, image=RED).images, wanted)


def test_what_fits_a_bound_stays_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu", offload=True)
    pipe.limit_memory(10**9)
    seen = Seen(pipe, monkeypatch)
    for _ in range(3):
        pipe("two dogs", **CALL)
    assert set(seen.reads.values()) == {1}
    pipe.limit_memory(None)
    assert in_memory(pipe) == set()


def test_blocks_that_do_not_fit_are_read_in_every_step(deeper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for a step and two of three blocks: for one that stays, and one in hand."""
    wanted = whole(deeper)("two dogs", **CALL).images
    pipe = Pipeline.from_pretrained(deeper, device="cpu", offload=True)
    block = max(each.size_bytes for each in parts(pipe)["blocks"])
    monkeypatch.setattr(bounds, "transformer_bytes", lambda *_, **__: 10**6)
    monkeypatch.setattr(bounds, "decoder_bytes", lambda *_: 0)
    pipe.limit_memory(HELD + 10**6 + 2 * block)
    seen = Seen(pipe, monkeypatch)
    assert torch.equal(pipe("two dogs", **CALL).images, wanted)
    # Those that do not stay are read with the prompt, and then in each of three steps.
    assert [seen.reads["blocks", number] for number in range(3)] == [1, 4, 4]


@pytest.mark.parametrize(
    ("room", "kept", "needed", "folds", "gaps"),
    [
        (2 * 115 + 600, None, 115 + 600, True, 115),
        (2 * 115 + 599, None, 100 + 600, False, 100),
        (2 * 100 + 600, None, 100 + 600, False, 100),
        (2 * 100 + 599, 7, 100 + 60, False, 100 + 60),  # 479 bytes beside what comes and goes, twice
        (2 * (100 + 60), 0, 100 + 60, False, 100 + 60),
        (2 * (100 + 60) - 1, 2, 100 + 60, False, 0),
        (160, 0, 100 + 60, False, 0),
        (159, 0, 99 + 60, False, 0),  # in two bands
        (158, 0, 99 + 60, False, 0),
    ],
)
def test_room_goes_to_gaps_then_to_blocks_that_stay_and_to_folded_prompts(
    room: int, kept: int | None, needed: int, folds: bool, gaps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = fitted_step(room, monkeypatch, keeps_freed=True)
    assert fit == Fit("a step", 4 if needed == 159 else None, needed, kept, folds, gaps)


@pytest.mark.parametrize(
    ("room", "kept", "needed", "folds"),
    [
        (115 + 600, None, 115 + 600, True),
        (115 + 599, None, 100 + 600, False),
        (100 + 600, None, 100 + 600, False),
        (99 + 600, None, 99 + 600, False),  # in two bands all stay
        (98 + 600, 8, 100 + 60, False),  # at once all but nine would not
        (160, 0, 100 + 60, False),
        (159, 0, 99 + 60, False),
    ],
)
def test_where_freed_memory_is_given_back_nothing_goes_to_gaps(
    room: int, kept: int | None, needed: int, folds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = fitted_step(room, monkeypatch, keeps_freed=False)
    assert fit == Fit("a step", 4 if needed in (159, 699) else None, needed, kept, folds)


def fitted_step(room: int, monkeypatch: pytest.MonkeyPatch, *, keeps_freed: bool) -> Fit:
    """A step takes 100 bytes, 99 in bands, and 15 more where prompts are folded; ten blocks have 60 each."""
    monkeypatch.setattr(
        bounds, "transformer_bytes", lambda *_, rows, folds, **__: 100 + 15 * folds - (rows is not None)
    )
    config = TransformerConfig(
        depth=10, width=20, head_dim=4, cross_head_dim=10, text_width=28, latent_channels=3
    )
    bound = MemoryBound(HELD + room, HELD)
    return bound.denoising(config, None, 8, 8, torch.float32, 2, block=60, keeps_freed=keeps_freed)


@pytest.mark.parametrize("room", ["for all", "for two blocks"])
def test_blocks_that_stay_are_packed_and_prompts_folded_where_there_is_room(
    room: str, deeper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native.compiler() is None or not torch.backends.mkldnn.is_available():
        pytest.skip("there is no C++ compiler or no oneDNN here")
    told: list[bool] = []
    read = Transformer.read

    def watched(*given: Any, **more: bool) -> Any:
        told.extend(more.values())
        return read(*given, **more)

    monkeypatch.setattr(Transformer, "read", watched)
    with native.using("native"):
        with monkeypatch.context() as patch:
            if room != "for all":
                patch.setattr(CrossAttention, "_folded", lambda *_: ())
            wanted = whole(deeper, "bf16")("two dogs", **CALL).images
        pipe = Pipeline.from_pretrained(deeper, device="cpu", dtype="bf16", offload=True)
        blocks = parts(pipe)["blocks"]
        if room == "for two blocks":
            monkeypatch.setattr(bounds, "transformer_bytes", lambda *_, **__: 10**6)
            monkeypatch.setattr(bounds, "decoder_bytes", lambda *_: 0)
            pipe.limit_memory(HELD + 10**6 + 2 * max(each.size_bytes for each in blocks))
        else:
            pipe.limit_memory(10**9)
        assert pipe.pack() == 3 * 4
        kinds: list[list[type[nn.Module]]] = []

        def look(_: Any) -> None:
            each = [block.feed_forward.expand for block in pipe.transformer.blocks]
            kinds.append([type(layer) for layer in each])

        drawn = pipe("two dogs", **CALL, on_step=look).images
        packs = [PackedLinear] * (3 if room == "for all" else 1)
        assert kinds[0] == packs + [Linear] * (3 - len(packs))
        assert told == [True, room == "for all"]
        assert torch.equal(drawn, wanted)
        pipe.limit_memory(None)
        layers = [block.feed_forward.expand for block in pipe.transformer.blocks]
        assert all(type(each) is Linear and each.weight.is_meta for each in layers)
        with pytest.raises(InputError, match="packed model is not saved"):
            pipe.save_pretrained("nowhere")
        pipe.limit_memory(10**9)
        with pipe.watched():
            pipe("two dogs", **CALL)
            assert type(pipe.transformer.blocks[0].feed_forward.expand) is Linear, "its own name is told"
        pipe("two dogs", **CALL)
        assert type(pipe.transformer.blocks[0].feed_forward.expand) is PackedLinear


def test_nothing_to_pack_is_not_a_packed_model(deeper: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(deeper, device="cpu", dtype="fp16", offload=True)
    if native.compiler() is None:
        pytest.skip("there is no C++ compiler here")
    with native.using("native"):
        assert pipe.pack() == 0, "no product of float16 is oneDNN's here"
    pipe.save_pretrained(tmp_path / "copy")


def test_freed_memory_is_kept_between_steps_that_have_room_for_its_gaps_and_not_while_decoding(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And weights are read before it is kept."""
    told: list[str] = []
    keeps = [False]

    def tell(name: str) -> None:
        told.append(name)
        keeps[0] = name == "keep"

    monkeypatch.setattr("lineardit.interop.room.keep_freed_memory", lambda: tell("keep"))
    monkeypatch.setattr("lineardit.interop.room.return_freed_memory", lambda: tell("return"))
    monkeypatch.setattr("lineardit.interop.room.keeps_freed_memory", lambda: keeps[0])
    enter = Offloaded.__enter__

    def watched(part: Offloaded) -> None:
        if not part.is_loaded and part in blocks:
            told.append("read")
        enter(part)

    monkeypatch.setattr(Offloaded, "__enter__", watched)
    pipe = Pipeline.from_pretrained(published, device="cpu", offload=True)
    blocks = parts(pipe)["blocks"]
    pipe.limit_memory(10**9)
    pipe("two dogs", **CALL)
    assert told == ["return", "return", *["read"] * len(blocks), "keep", "return"]
    told.clear()
    pipe.limit_memory(10**9, keep_freed=False)
    pipe("two dogs", **CALL)
    assert told == ["return", *["read"] * len(blocks)]


def test_what_steps_share_is_not_given_to_a_preview(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding is said to take 100 kB at once and 1 byte in bands, and there is room for it at once."""
    monkeypatch.setattr(bounds, "transformer_bytes", lambda *_, **__: 10)
    monkeypatch.setattr(bounds, "decoder_bytes", lambda *given: 1 if given[-1] else 10**5)
    pipe = Pipeline.from_pretrained(published, device="cpu", offload=True)
    sizes = {name: sum(each.size_bytes for each in found) for name, found in parts(pipe).items()}
    pipe.limit_memory(HELD + max(sizes["decoder"] + 10**5, sizes["text"], sizes["blocks"] + 10))
    rows: list[int | None] = []
    decide = pipe._room.rows_to_decode
    monkeypatch.setattr(pipe._room, "rows_to_decode", lambda *side: rows.append(decide(*side)) or rows[-1])
    states = pipe.generate("two dogs", height=80, width=48, num_inference_steps=2)
    pipe.decode(next(states).denoised)
    states.close()
    pipe.decode(torch.randn(1, 3, 10, 6))
    assert rows[0] is not None and rows[1] is None


def test_the_least_that_works_counts_the_weights_that_are_read(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("transformer_bytes", "decoder_bytes", "encoder_bytes"):
        monkeypatch.setattr(bounds, name, lambda *_, **__: 0)
    pipe = Pipeline.from_pretrained(published, device="cpu", offload=True)
    sizes = {name: [each.size_bytes for each in found] for name, found in parts(pipe).items()}
    least = max(max(sizes["text"]), max(sizes["blocks"]), sum(sizes["decoder"]))
    for room, call in ((least, CALL), (max(least, sum(sizes["encoder"])), CALL | {"image": RED})):
        pipe.limit_memory(HELD + room)
        assert pipe("two dogs", **call).images.isfinite().all()
        pipe.limit_memory(HELD + room - 1)
        with pytest.raises(MemoryLimitError):
            pipe("two dogs", **call)


def test_what_saves_weights_reads_them_all(published: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(published, device="cpu", offload=True)
    pipe.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "text_encoder" / "model.safetensors").is_file()
    assert not parts(pipe)["blocks"] and not parts(pipe)["decoder"]
    saved = load_file(tmp_path / "copy" / "transformer.safetensors")
    held = Pipeline.from_pretrained(published, device="cpu").transformer.state_dict()
    assert {*saved} == {*held} and all(torch.equal(saved[name], held[name]) for name in held)


def test_an_offloaded_model_is_quantized_as_any_other(published: Path) -> None:
    pipes = [whole(published), Pipeline.from_pretrained(published, device="cpu", offload=True)]
    for part in parts(pipes[1])["blocks"]:
        part.kept = True  # as a picture that was drawn before leaves them
        with part:
            pass
    for pipe in pipes:
        assert not pipe.is_quantized
        pipe.quantize()
        assert pipe.is_quantized
    assert in_memory(pipes[1]) == set()
    one, other = (pipe("two dogs", **CALL).images for pipe in pipes)
    assert torch.equal(one, other)
    assert in_memory(pipes[1]) == {"decoder"}, "blocks made room for it"
    assert torch.equal(pipes[1]("two dogs", **CALL).images, one)
    with pipes[1].watched():
        assert torch.equal(pipes[1]("two dogs", **CALL).images, one)
    for pipe in pipes:
        with pytest.raises(InputError, match="quantized already"):
            pipe.quantize()
        with pytest.raises(InputError, match="is not saved"):
            pipe.save_pretrained("nowhere")


def test_blocks_take_what_they_said_once_they_are_quantized(published: Path) -> None:
    pipe = Pipeline.from_pretrained(published, device="cpu", offload=True)
    before = [each.size_bytes for each in parts(pipe)["blocks"]]
    pipe.quantize()
    for part, block, plain in zip(parts(pipe)["blocks"], pipe.transformer.blocks, before, strict=True):
        assert part.stored_bytes == plain
        with part:
            found = [*block.state_dict(keep_vars=True).values()]
            assert not any(each.is_meta for each in found)
            assert part.size_bytes == sum(each.nbytes for each in found) < plain / 2
        assert part.size_bytes < plain


@pytest.mark.parametrize(("room", "kept"), [("all", 3), ("a byte less", 1), ("one", 0), ("none", None)])
def test_quantized_blocks_stay_as_far_as_they_fit_beside_the_one_that_is_read(
    room: str, kept: int | None, deeper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a megabyte however it is done."""
    monkeypatch.setattr(bounds, "decoder_bytes", lambda *_: 0)
    monkeypatch.setattr(bounds, "transformer_bytes", lambda *_, **__: 10**6)
    pipe = Pipeline.from_pretrained(deeper, device="cpu", offload=True)
    pipe.quantize()
    wanted = pipe("two dogs", **CALL).images
    part = parts(pipe)["blocks"][0]
    one = 10**6 + part.stored_bytes + part.size_bytes
    rooms = {"all": one + 2 * part.size_bytes, "one": one, "none": one - 1}
    rooms["a byte less"] = rooms["all"] - 1
    pipe.limit_memory(HELD + rooms[room], keep_freed=False)
    if kept is None:
        with pytest.raises(MemoryLimitError):
            pipe("two dogs", **CALL)
        return
    seen = Seen(pipe, monkeypatch)
    assert torch.equal(pipe("two dogs", **CALL).images, wanted)
    often = [number for (name, number), reads in seen.reads.items() if name == "blocks" and reads > 2]
    assert 3 - len(often) == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloaded_gemma_reads_prompts_to_the_bit(
    published: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "model"))
    import transformers

    model = transformers.Gemma2Model.from_pretrained(folder / "text_encoder")
    model.to(dtype).save_pretrained(folder / "text_encoder")
    place = open_place(folder)
    right, left = (assemble_text_encoder(place, torch.device("cpu"), offloads=each) for each in (False, True))
    in_own_memory(right)
    held: list[Offloaded] = offloaded(left.model)  # type: ignore[attr-defined]
    assert len(held) == 2 + 2 and not any(each.is_loaded for each in held)
    for read in ("encode", "encode_negative"):
        one, other = (getattr(encoder, read)(["two dogs", "a cat"]) for encoder in (right, left))
        assert one.embeddings.dtype == dtype and torch.equal(one.embeddings, other.embeddings)
        assert torch.equal(one.mask, other.mask)
    assert not any(each.is_loaded for each in held)


def test_offloaded_weights_that_do_not_fit_are_named_before_anything_is_drawn(
    published: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "model"))
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    del tensors["layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing \(1\): layers.1.mlp.up_proj.weight"):
        Pipeline.from_pretrained(folder, device="cpu", offload=True)


def test_a_number_that_is_not_finite_is_found_in_its_file(published: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "model"))
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["transformer_blocks.1.attn1.to_out.0.weight"][0, 0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    pipe = Pipeline.from_pretrained(folder, device="cpu", offload=True)
    with pytest.raises(NotFiniteError, match="transformer.blocks.1.attention.to_out.weight"), pipe.watched():
        pass
    assert in_memory(pipe) == set()


def test_files_that_are_gone_by_then_are_said(published: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(published, tmp_path / "model"))
    pipe = Pipeline.from_pretrained(folder, device="cpu", offload=True)
    shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointError, match="cannot be read"):
        pipe("two dogs", **CALL)


def test_a_state_that_is_looked_at_makes_room_and_the_next_step_reads_again(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = whole(published)("two dogs", **CALL).images
    pipe = Pipeline.from_pretrained(published, device="cpu", offload=True)
    seen = Seen(pipe, monkeypatch)
    at_work: list[set[str]] = []

    def look(state: Any) -> None:
        pipe.decode(state.denoised)
        at_work.append(in_memory(pipe))

    assert torch.equal(pipe("two dogs", **CALL, on_step=look).images, wanted)
    assert at_work == [{"decoder"}] * CALL["num_inference_steps"]
    assert seen.reads["blocks", 0] == CALL["num_inference_steps"]


def test_pictures_within_a_bound_are_read_drawn_and_decoded_one_by_one(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["two dogs", "a cat"]
    wanted = whole(published)(prompts, **CALL).images
    pipe = Pipeline.from_pretrained(published, device="cpu", offload=True)
    monkeypatch.setattr(Pipeline, "device", torch.device("cpu"))
    pipe.limit_memory(10**9)
    read: list[int] = []
    encode = type(pipe.text_encoder).encode
    monkeypatch.setattr(
        type(pipe.text_encoder), "encode", lambda self, given: read.append(len(given)) or encode(self, given)
    )
    drawn = pipe(prompts, **CALL).images
    assert read == [1, 1]
    torch.testing.assert_close(drawn, wanted, rtol=0, atol=1e-5)
    latents = torch.randn(2, 3, 10, 6)
    decoded = []
    decode = type(pipe.autoencoder).decode
    monkeypatch.setattr(
        type(pipe.autoencoder), "decode", lambda self, x: decoded.append(len(x)) or decode(self, x)
    )
    assert pipe.decode(latents).shape == (2, 3, 80, 48)
    assert decoded == [1, 1]


def test_a_batch_that_does_not_fit_is_refused_and_a_step_with_one_branch_is_counted_as_one(
    published: Path, sprint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is said to take a megabyte for each picture that it sees, and there is room for three."""
    monkeypatch.setattr(bounds, "transformer_bytes", lambda *given, **_: given[4] * 10**6)
    monkeypatch.setattr(bounds, "decoder_bytes", lambda *_: 0)
    pipe = Pipeline.from_pretrained(published, device="cpu")
    pipe.limit_memory(HELD + 3 * 10**6)
    assert len(pipe(["two dogs", "a cat"], **CALL).images) == 2
    with pytest.raises(MemoryLimitError, match="a step at 48 x 80 pixels takes at least 4 MB more"):
        pipe(["two dogs", "a cat"], **CALL, batch_size=2)
    distilled = Pipeline.from_pretrained(sprint, device="cpu")
    distilled.limit_memory(HELD + 10**6)
    call = CALL | {"num_inference_steps": 1}
    assert distilled("two dogs", **call).images.isfinite().all()


def test_what_was_read_for_good_counts_in_the_bound_from_then_on(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "transformer_bytes", lambda *_, **__: 10)
    monkeypatch.setattr(bounds, "decoder_bytes", lambda *_: 0)
    pipe = Pipeline.from_pretrained(published, device="cpu", offload=True)
    weights = sum(each.size_bytes for found in parts(pipe).values() for each in found)
    pipe.limit_memory(HELD + weights + 9)
    pipe("two dogs", **CALL)
    pipe.save_pretrained(tmp_path / "copy")
    with pytest.raises(MemoryLimitError, match="a step"):
        pipe("two dogs", **CALL)
    pipe.limit_memory(None)
    pipe("two dogs", **CALL)


def test_a_read_that_fails_leaves_nothing_behind(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline.from_pretrained(published, device="cpu", offload=True)
    wanted = pipe("two dogs", **CALL).images
    pipe.limit_memory(None)
    read, left = LazyTensors.__getitem__, [30]

    def interrupted(self: LazyTensors, name: str) -> torch.Tensor:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(LazyTensors, "__getitem__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipe("two dogs", **CALL)
    networks = pipe.networks.values()
    held = {name for each in networks for name, tensor in each.state_dict().items() if not tensor.is_meta}
    fresh = Pipeline.from_pretrained(published, device="cpu", offload=True).networks.values()
    assert held == {
        name for each in fresh for name, tensor in each.state_dict().items() if not tensor.is_meta
    }
    assert torch.equal(pipe("two dogs", **CALL).images, wanted)
    assert "text" not in in_memory(pipe)


def test_a_step_cache_is_counted(deeper: Path, counting: Any) -> None:
    pipe = Pipeline.from_pretrained(deeper, device="cpu")
    config = pipe.transformer.config
    without, cached = (
        transformer_bytes(config, 64, 64, torch.float32, caches=each) for each in (False, True)
    )
    read = pipe.transformer.read(torch.randn(2, 300, config.text_width))
    latents, times = torch.randn(2, config.latent_channels, 64, 64), torch.full((2,), 0.5)
    cache = StepCache(1.0)
    pipe.transformer(latents, times, read, cache=cache)
    peaks = []
    for each in (None, StepCache(0.0001), cache):
        with torch.no_grad(), counting(pipe.transformer) as counted:
            pipe.transformer(latents, times, read, cache=each)
            if each is not None:
                pipe.transformer(latents * 0.5, times, read, cache=each)
        peaks.append(counted.peak)
    assert without < peaks[0] * 1.15
    more = max(peaks[1:]) - peaks[0]
    assert more <= cached - without <= 3 * more


def test_a_long_prompt_takes_what_is_told(published: Path, counting: Any) -> None:
    pipe = Pipeline.from_pretrained(published, device="cpu")
    model = pipe.networks["text_encoder"]
    tokens = torch.zeros(1, LONGEST_PROMPT, dtype=torch.long)
    with torch.no_grad(), counting(model) as counted:
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    assert counted.peak <= prompt_bytes(model) <= 3 * counted.peak
