"""Linear attention in O(n): a (d, e) memory and a (d) mass that add up over keys, then applied to queries."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lineardit.errors import InputError, ShapeError
from lineardit.kernels import gradients, native, operators
from lineardit.kernels.reference import EPS, FEATURE_MAPS, features

Kernel = Literal["auto", "torch", "triton", "native"]
"""`torch` runs everywhere and is differentiable any number of times and forwards; `triton` on a GPU, once;
`native` on a CPU where that library is in use, without gradients; with them `auto` takes it, once."""


class LinearAttentionState(NamedTuple):
    """All that queries need to know of the keys and values. States of disjoint keys add up, exactly.

    Linear attention is a sum over tokens, so tokens may come in chunks, from tiles or from other machines.
    """

    memory: Float[Tensor, "b heads d e"]
    mass: Float[Tensor, "b heads d"]

    def __add__(self, other: "LinearAttentionState") -> "LinearAttentionState":  # type: ignore[override]
        """The state of both sets of keys."""
        return LinearAttentionState(self.memory + other.memory, self.mass + other.mass)


def linear_attention_state(
    key: Float[Tensor, "b heads m d"],
    value: Float[Tensor, "b heads m e"],
    *,
    feature_map: str = "relu",
    mask: Bool[Tensor, "b m"] | None = None,
    kernel: Kernel = "auto",
) -> LinearAttentionState:
    """memory = phi(key)^T value and mass = sum phi(key), in float32 or wider.

    Raises:
        InputError: an unknown feature map or kernel.
        ShapeError: the mask has another length than the keys.
    """
    if _by_triton(kernel, key, value.shape[-1], feature_map):
        _check_mask(key, mask)
        return LinearAttentionState(*operators.linear_attention_state(key, value, mask, feature_map))
    if (library := _native(kernel, feature_map, key, value)) is not None:
        _check_mask(key, mask)
        return _native_state(library, key, value, feature_map, mask)
    if mask is not None:
        _check_mask(key, mask)
    if (library := _learns(kernel, feature_map, key, value)) is not None:
        return LinearAttentionState(
            *gradients.run(gradients.AttentionState, key, value, mask, feature_map == "elu1", library)
        )
    phi = features(_widen(key), feature_map)
    if mask is not None:
        phi = phi * mask[:, None, :, None]
    with _without_autocast(key.device):
        return LinearAttentionState(phi.transpose(-1, -2) @ _widen(value), phi.sum(-2))


def linear_attention(
    query: Float[Tensor, "b heads n d"],
    key: Float[Tensor, "b heads m d"] | None,
    value: Float[Tensor, "b heads m e"] | None,
    *,
    feature_map: str = "relu",
    mask: Bool[Tensor, "b m"] | None = None,
    state: LinearAttentionState | None = None,
    kernel: Kernel = "auto",
) -> Float[Tensor, "b heads n e"]:
    """phi(q) (phi(k)^T v) / (phi(q) . sum phi(k) + 1e-15), in time and memory linear in n and m.

    Sums run in float32 (float64 for float64 inputs); the result has the query's dtype. With `state`, its keys
    count too; key and value may then be None. `mask` keeps the true keys; when none is kept the result is 0.
    `kernel` auto takes Triton on a GPU where its kernels agree with the definition, checked once; they have
    no forward-mode and no second derivatives.

    Raises:
        InputError: neither keys and values nor a state, one of them without the other, an integer query, or
            an unknown feature map or kernel.
        ShapeError: the state or the mask was made for other shapes.
    """
    if not query.is_floating_point():
        raise InputError(f"query has dtype {query.dtype}: give float32, bfloat16, float16 or float64.")
    if (key is None) != (value is None) or (key is None and mask is not None):
        raise InputError("key, value and mask belong together: give key and value, or neither of the three.")
    if key is not None and value is not None:
        own = linear_attention_state(key, value, feature_map=feature_map, mask=mask, kernel=kernel)
        state = own if state is None else state + own
    if state is None:
        raise InputError("linear_attention has nothing to attend to: give key and value, or a state.")
    if state.mass.shape[-1] != query.shape[-1]:
        raise ShapeError(
            f"the state has head size {state.mass.shape[-1]} and the query {query.shape[-1]}: "
            "apply a state only to queries of the size it was made with."
        )
    if _by_triton(kernel, query, state.memory.shape[-1], feature_map):
        return operators.linear_attention_apply(query, state.memory, state.mass, feature_map)
    if (library := _native(kernel, feature_map, query)) is not None and _plain(state):
        return _native_apply(library, query, state, feature_map)
    if (library := _learns(kernel, feature_map, query, *state)) is not None:
        learned: Tensor = gradients.run(
            gradients.AttentionApplied, query, *state, feature_map == "elu1", library
        )
        return learned
    return _apply(query, state, feature_map)


def _by_triton(kernel: Kernel, x: Tensor, value_size: int, feature_map: str) -> bool:
    if kernel == "auto":
        return operators.runs_triton(x, value_size) and feature_map in FEATURE_MAPS
    if kernel not in ("torch", "triton", "native"):
        raise InputError(f"kernel={kernel!r} is not known: use auto, torch, triton or native.")
    if kernel != "triton":
        return False
    if not operators.HAS_TRITON:
        raise InputError("kernel='triton' needs the package triton: pip install triton, or use auto.")
    if x.dtype == torch.float64 or max(x.shape[-1], value_size) > operators.LARGEST_HEAD:
        raise InputError(
            f"kernel='triton' takes heads of up to {operators.LARGEST_HEAD} channels in float32 or less, "
            f"not {max(x.shape[-1], value_size)} in {x.dtype}. Use auto."
        )
    if feature_map not in FEATURE_MAPS:
        features(x, feature_map)  # says which are known
    return True


def _native(kernel: Kernel, feature_map: str, *tensors: Tensor) -> native.Library | None:
    library = native.takes(*tensors) if kernel in ("auto", "native") else None
    if library is None and kernel == "native":
        raise InputError(
            "kernel='native' needs the library in use and float32 or bfloat16 tensors of one dtype on a CPU, "
            "without gradients. Use auto."
        )
    return library if feature_map in FEATURE_MAPS else None


def _learns(kernel: Kernel, feature_map: str, x: Tensor, *others: Tensor) -> native.Library | None:
    """The library for gradients: of keys and values of one dtype, or of a query and a state in float32."""
    alike = {each.dtype for each in others} == ({x.dtype} if len(others) == 1 else {torch.float32})
    if kernel != "auto" or feature_map not in FEATURE_MAPS or not alike:
        return None
    return native.learns(x, *others)


def _plain(state: LinearAttentionState) -> bool:
    return native.takes(*state) is not None and state.mass.dtype == torch.float32


def _native_state(
    library: native.Library, key: Tensor, value: Tensor, feature_map: str, mask: Tensor | None
) -> LinearAttentionState:
    key, value = _channels_together(key), _channels_together(value)
    b, heads, count, d = key.shape
    memory = key.new_empty((b, heads, d, value.shape[-1]), dtype=torch.float32)
    mass = key.new_empty((b, heads, d), dtype=torch.float32)
    native.call(
        library,
        "attention_state",
        key.dtype,
        *(key, value, None if mask is None else mask.contiguous(), memory, mass),
        *((b, heads, count, d, value.shape[-1]), (*key.stride()[:3], *value.stride()[:3])),
        feature_map == "elu1",
    )
    return LinearAttentionState(memory, mass)


def _native_apply(
    library: native.Library, query: Tensor, state: LinearAttentionState, feature_map: str
) -> Tensor:
    query = _channels_together(query)
    b, heads, count, d = query.shape
    size_e = state.memory.shape[-1]
    # Tokens before heads, as they are read next.
    out = query.new_empty((b, count, heads, size_e)).transpose(1, 2)
    native.call(
        library,
        "attention_apply",
        query.dtype,
        *(query, state.memory.contiguous(), state.mass.contiguous(), out),
        *((b, heads, count, d, size_e), (*query.stride()[:3], *out.stride()[:3])),
        *(feature_map == "elu1", EPS),
    )
    return out


def _channels_together(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _check_mask(key: Tensor, mask: Tensor | None) -> None:
    if mask is not None and mask.shape != (key.shape[0], key.shape[2]):
        raise ShapeError(
            f"mask of shape {tuple(mask.shape)} does not fit {key.shape[0]} rows of {key.shape[2]} keys: "
            f"give a bool mask of shape ({key.shape[0]}, {key.shape[2]})."
        )


def _apply(query: Tensor, state: LinearAttentionState, feature_map: str) -> Tensor:
    phi = features(_widen(query), feature_map)
    with _without_autocast(query.device):
        denominator = phi @ state.mass.unsqueeze(-1) + EPS
        return (phi @ state.memory / denominator).to(query.dtype)


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast would round the sums to half precision, where they overflow (float16) or lose small values."""
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype.itemsize >= 4 else x.float()
