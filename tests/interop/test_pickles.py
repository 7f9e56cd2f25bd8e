"""Pickles of torch are read to the bit, and what is none, or was packed by others, gets one line."""

import pickle
import sys
import zipfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lineardit.errors import CheckpointError
from lineardit.interop.pickles import open_pickle

Members = list[tuple[str, bytes]]


def tensors() -> dict[str, Tensor]:
    """More than ten, so that their numbers have no alphabetical order, and of one size, as blocks have."""
    generator = torch.Generator().manual_seed(0)
    return {f"blocks.{number}.weight": torch.randn(4, 8, generator=generator) for number in range(12)}


def packed_again(path: Path, compression: int, change: Callable[[Members], Members] = list) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in change(members):
            archive.writestr(name, content)


def without_mark(members: Members) -> Members:
    """As torch wrote them before it reckoned where a storage begins."""
    return [(name, content) for name, content in members if not name.endswith(".format_version")]


def refused(path: Path, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint) as caught:
        open_pickle(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_tensors_that_share_their_numbers_or_have_none_are_read_to_the_bit(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    given = {
        "whole": whole,
        "rows": whole[2:5],
        "turned": whole.t(),
        "columns": whole[:, 1:3],
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "half": whole.half(),
        "flags": torch.tensor([True, False, True]),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    torch.save(given | tensors(), tmp_path / "x.pth")
    found = open_pickle(tmp_path / "x.pth")
    assert found.keys() == (given | tensors()).keys()
    for name, tensor in (given | tensors()).items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_checkpoint_that_another_program_packed_again_is_refused(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "sana.pth"
    torch.save({"state_dict": tensors()}, path)
    packed_again(path, compression)
    assert torch.load(path)["state_dict"].keys() == tensors().keys(), "torch reads it"
    refused(path, "packed again by another program, .* save it again with torch.save")


def test_a_checkpoint_with_one_compressed_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sana.pth"
    torch.save(tensors(), path)
    packed_again(path, zipfile.ZIP_STORED, without_mark)
    with zipfile.ZipFile(path) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            packed = name.endswith("data/3")
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    refused(path, "was compressed or packed again")


def test_numbers_that_changed_places_within_a_checkpoint_are_noticed(tmp_path: Path) -> None:
    """Where torch looks for one storage another one of its size begins."""
    path = tmp_path / "sana.pth"
    torch.save(tensors(), path)
    content = path.read_bytes()
    for old, new in ((b"/data/1", b"/data/?"), (b"/data/2", b"/data/1"), (b"/data/?", b"/data/2")):
        at = content.replace(old + b"FB", new + b"FB")  # before each member, with what fills up to 64 bytes
        content = at.replace(old + b"PK", new + b"PK")  # and in the list at the end
    path.write_bytes(content)
    assert torch.equal(torch.load(path)["blocks.1.weight"], tensors()["blocks.2.weight"])
    refused(path, "was compressed or packed again")


def test_an_older_checkpoint_that_was_packed_again_plainly_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sana.pth"
    torch.save(tensors(), path)
    packed_again(path, zipfile.ZIP_STORED, lambda members: without_mark(members)[::-1])
    found = open_pickle(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors().items())


def test_a_checkpoint_of_a_machine_with_another_order_of_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sana.pth"
    torch.save(tensors(), path)
    other = b"big" if sys.byteorder == "little" else b"little"
    packed_again(
        path,
        zipfile.ZIP_STORED,
        lambda members: [
            (name, other if name.endswith("byteorder") else content)
            for name, content in without_mark(members)
        ],
    )
    refused(path, "was written on a machine with another order of bytes")


def test_a_program_of_torchscript_is_called_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sana.pt", "w") as archive:
        archive.writestr("sana/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("sana/constants.pkl", pickle.dumps((), protocol=2))
    refused(tmp_path / "sana.pt", "is a program of TorchScript")


MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)


@pytest.mark.parametrize(
    "content",
    [
        b"error: the model was not found\n",  # IndexError inside torch
        b"Not found",
        b"<html><body>404</body></html>",
        b"]",
        b"\x80\x02J\x01",  # struct.error
        MAGIC + pickle.dumps({}, protocol=2) + b"\x80\x02K\x01Q.",  # AssertionError
        b"PK\x03\x04" + b"\0" * 100,
        b"PK\x05\x06" + b"\0" * 18,
    ],
)
def test_a_file_that_is_no_pickle_of_torch_gets_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sana.pth").write_bytes(content)
    refused(tmp_path / "sana.pth", "is cut off or damaged, or is no checkpoint of torch")


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_is_refused_wherever_it_was_cut_off(tmp_path: Path, new: bool) -> None:
    held = {"x": torch.ones(3), "y": torch.zeros(2)}
    torch.save(held, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    content = (tmp_path / "x.pth").read_bytes()
    # A name that is cut is one that torch does not know.
    complaint = "is cut off or damaged, or is no checkpoint of torch|wants to call .* could run code"
    for length in {*range(0, len(content), 7), len(content) - 1}:
        (tmp_path / "cut.pth").write_bytes(content[:length])
        refused(tmp_path / "cut.pth", complaint)


def test_what_is_no_plain_tensor_is_named(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2), "y": torch.eye(2).to_sparse()}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "y in it is no tensor")


class Stranger:
    """What other programs keep in their checkpoints beside tensors."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return deque, (3,)


@pytest.mark.parametrize("new", [True, False])
def test_what_a_pickle_wants_to_call_is_named(tmp_path: Path, new: bool) -> None:
    torch.save({"x": Stranger()}, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    refused(tmp_path / "x.pth", r"wants to call collections\.deque while it is read, which could run code")


def test_a_checkpoint_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.arange(6.0)}, tmp_path / "plain.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(open_pickle(tmp_path / "plain.pth")["weight"], torch.arange(6.0))
