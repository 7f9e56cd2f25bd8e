"""The passes in C++, compiled for the processor at hand: built once, checked once, used where chosen.

The library has a plain C interface and knows nothing of torch but its OpenMP, which it shares so that both
use one set of threads. It is kept in the user's cache, under a name that tells source, compiler and
processor apart.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lineardit.errors import InputError
from lineardit.kernels.select import Choice, inspect_machine

PATHS = ("auto", "torch", "native")
"""`torch` runs everywhere and is differentiable, `native` is the library, `auto` takes it where it can."""

COMPILERS = ("c++", "g++", "clang++")
OPTIONS = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp"),
    # No traps and no errno: what vectors need. Sums keep their order and NaN stays NaN.
    *("-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
)
_NOUNS = ("passes", "int8", "convolution", "prompt", "gradients")
SOURCES = tuple(Path(__file__).with_name(f"{noun}.cpp") for noun in _NOUNS)
HEADERS = tuple(Path(__file__).with_name(name) for name in ("lanes.h", "products.h"))
VERSION = 5
SECONDS_TO_COMPILE = 300
_SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}

Library = ctypes.CDLL
_log = logging.getLogger(__name__)
_in_use: ctypes.CDLL | None = None
_torch_only = False


def use(passes: str) -> Choice:
    """Choose, for this process, what computes the passes on a CPU, and say why.

    The first `auto` or `native` on a machine compiles the library, some seconds long. On a GPU `torch` leaves
    Triton's kernels off.

    Raises:
        InputError: the name is unknown, or `native` cannot be had, with the reason.
    """
    global _in_use, _torch_only
    if passes not in PATHS:
        raise InputError(f"kernels={passes!r} is not known: use auto, torch or native.")
    _torch_only = passes == "torch"
    if passes == "torch":
        _in_use = None
        return Choice("torch", "asked for")
    reason = refusal()
    if reason is None:
        _in_use = _library()
        return Choice("native", f"compiled for this processor: {library_path()}")
    if passes == "native":
        raise InputError(f"kernels='native' cannot be had: {reason}. Use torch.")
    _in_use = None
    return Choice("torch", reason)


@contextmanager
def using(passes: str) -> Iterator[None]:
    """`use` for the time of a block."""
    global _in_use, _torch_only
    before = _in_use, _torch_only
    use(passes)
    try:
        yield
    finally:
        _in_use, _torch_only = before


def is_in_use() -> bool:
    """Whether the library computes the passes of this process."""
    return _in_use is not None


def is_torch_asked_for() -> bool:
    """Whether this process was told to compute with torch alone."""
    return _torch_only


def outlook() -> Choice:
    """What `auto` would take, without compiling anything."""
    try:
        if library_path().is_file():
            return Choice("native", f"compiled for this processor: {library_path()}")
    except OSError as error:
        return Choice("torch", f"{library_path().parent} cannot be read ({error.strerror})")
    if compiler() is None:
        return Choice("torch", f"there is no C++ compiler ({', '.join(COMPILERS)})")
    return Choice("native", f"{compiler()} compiles them at first use")


def takes(*tensors: Tensor | None) -> ctypes.CDLL | None:
    """The library, if it is in use and can compute with these tensors: one dtype, a CPU, and no gradients."""
    if _in_use is None or torch.compiler.is_compiling():
        return None
    given = [each for each in tensors if each is not None]
    dtype = given[0].dtype
    if dtype not in _SUFFIXES:
        return None
    records = torch.is_grad_enabled()
    for each in given:
        if type(each) not in (Tensor, torch.nn.Parameter) or each.dtype != dtype:
            return None
        if each.device.type not in ("cpu", "meta"):
            return None
        if records and each.requires_grad:
            return None
    return None if is_transformed() else _in_use


def multiplies(*tensors: Tensor | None) -> bool:
    """Whether oneDNN, where torch has it, may multiply these tensors beside the library."""
    if takes(*tensors) is None or torch.is_autocast_enabled("cpu"):  # None while torch.compile traces
        return False
    return has_products(next(each.dtype for each in tensors if each is not None))


def has_products(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there, and multiplies this dtype on this processor: bfloat16 asks for AVX-512."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and (dtype != torch.bfloat16 or _has_bfloat16_products())


@cache
def _has_bfloat16_products() -> bool:
    found: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return found


@cache
def has_tiles() -> bool:
    """Whether oneDNN multiplies bfloat16 and int8 in tiles (AMX), at several times the rate of vectors."""
    return "amx_bf16" in inspect_machine().features


def learns(*tensors: Tensor | None) -> ctypes.CDLL | None:
    """The library, if it is in use and can compute with these tensors and differentiate once (`gradients`).

    They may be float32 and bfloat16 beside each other, as under autocast.
    """
    if _in_use is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None
    given = [each for each in tensors if each is not None]
    if not any(each.requires_grad for each in given):
        return None
    for each in given:
        if type(each) not in (Tensor, torch.nn.Parameter) or each.dtype not in _SUFFIXES:
            return None
        if each.device.type != "cpu":
            return None
    return None if is_transformed() else _in_use


def call(library: ctypes.CDLL, name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Call a pass for a dtype: tensors go as pointers, tuples as arrays of int64, floats as float32.

    Tensors without numbers have nothing to compute.
    """
    if any(isinstance(each, Tensor) and each.is_meta for each in arguments):
        return
    function = getattr(library, f"{name}_{_SUFFIXES[dtype]}")
    function.restype = None
    function(*(_argument(each) for each in arguments))


def _argument(value: Any) -> Any:
    match value:
        case None:
            return ctypes.c_void_p()
        case Tensor():
            return ctypes.c_void_p(value.data_ptr())
        case bool():
            return ctypes.c_int(value)
        case int():
            return ctypes.c_int64(value)
        case float():
            return ctypes.c_float(value)
        case _:
            return (ctypes.c_int64 * len(value))(*value)


def is_transformed() -> bool:
    """Whether forward derivatives or function transforms are under way, which see through torch only."""
    if torch._C._functorch.maybe_current_level() is not None:
        return True
    return bool(torch.autograd.forward_ad._current_level >= 0)


@cache
def refusal() -> str | None:
    """Why the library must not be used, or None: it was built and agrees with the definitions."""
    try:
        library = _library()
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error) or repr(error)
        reason = f"the C++ passes cannot be built or loaded here: {said.strip().splitlines()[0]}"
    else:
        from lineardit.kernels.passes import disagreement

        with _trying(library):
            apart = disagreement()
        if apart <= CHECKED_TO:
            return None
        reason = f"the C++ passes are {apart:.1e} from their definitions"
    _log.info("%s; torch runs instead", reason)
    return reason


CHECKED_TO = 1e-5
"""How far float32 passes may be from their definitions, relative to the largest number."""


@contextmanager
def _trying(library: ctypes.CDLL) -> Iterator[None]:
    global _in_use
    before, _in_use = _in_use, library
    try:
        yield
    finally:
        _in_use = before


@cache
def _library() -> ctypes.CDLL:
    path = library_path()
    if not path.is_file():
        _build(path)
    library = ctypes.CDLL(str(path))
    if library.lineardit_passes_version() != VERSION:
        raise OSError(f"{path} has another version than {VERSION}")
    return library


@cache
def library_path() -> Path:
    """Where the library of this source, compiler and processor is or would be."""
    machine = inspect_machine()
    parts = [
        *(place.read_text("utf-8") for place in (*SOURCES, *HEADERS)),
        *OPTIONS,
        str(compiler()),
        machine.processor,
        *sorted(machine.features),
    ]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return Path.home() / ".cache" / "lineardit" / f"passes-{name}.so"


@cache
def compiler() -> str | None:
    """The first C++ compiler that is here."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def _build(path: Path) -> None:
    chosen = compiler()
    if chosen is None:
        raise OSError(f"there is no C++ compiler ({', '.join(COMPILERS)})")
    _log.info("compiling %s once, some seconds", ", ".join(place.name for place in SOURCES))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [chosen, *OPTIONS, *map(str, SOURCES), "-o", str(built), *_shared_threads()]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS_TO_COMPILE)
        os.replace(built, path)


def _shared_threads() -> list[str]:
    """torch's own OpenMP to link against, where it brings one: two of them would fight for the processors."""
    return [str(path) for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))[:1]]
