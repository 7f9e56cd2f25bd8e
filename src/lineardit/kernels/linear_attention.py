"""Linear attention in O(n): a (d, e) memory and a (d) mass that add up over keys, then applied to queries."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lineardit.errors import InputError, ShapeError
from lineardit.kernels import operators
from lineardit.kernels.reference import EPS, FEATURE_MAPS, feature_map

Kernel = Literal["auto", "torch", "triton"]
"""`torch` runs everywhere and is differentiable any number of times and forwards; `triton` on a GPU, once."""


class LinearAttentionState(NamedTuple):
    """All that queries need to know of the keys and values. States of disjoint keys add up, exactly.

    Linear attention is a sum over tokens, so tokens may come in chunks, from tiles or from other machines.
    """

    memory: Float[Tensor, "b heads d e"]
    mass: Float[Tensor, "b heads d"]

    def merge(self, other: "LinearAttentionState") -> "LinearAttentionState":
        """The state of both sets of keys."""
        return LinearAttentionState(self.memory + other.memory, self.mass + other.mass)


def linear_attention_state(
    key: Float[Tensor, "b heads m d"],
    value: Float[Tensor, "b heads m e"],
    *,
    feature_map_name: str = "relu",
    mask: Bool[Tensor, "b m"] | None = None,
    kernel: Kernel = "auto",
) -> LinearAttentionState:
    """memory = phi(key)^T value and mass = sum phi(key), in float32 or wider.

    Raises:
        InputError: an unknown feature map or kernel.
        ShapeError: the mask has another length than the keys.
    """
    if _by_triton(kernel, key, value.shape[-1], feature_map_name):
        _check_mask(key, mask)
        return LinearAttentionState(*operators.linear_attention_state(key, value, mask, feature_map_name))
    features = feature_map(_widen(key), feature_map_name)
    if mask is not None:
        _check_mask(key, mask)
        features = features * mask[:, None, :, None]
    with _without_autocast(key.device):
        return LinearAttentionState(features.transpose(-1, -2) @ _widen(value), features.sum(-2))


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
        own = linear_attention_state(key, value, feature_map_name=feature_map, mask=mask, kernel=kernel)
        state = own if state is None else state.merge(own)
    if state is None:
        raise InputError("linear_attention has nothing to attend to: give key and value, or a state.")
    if state.mass.shape[-1] != query.shape[-1]:
        raise ShapeError(
            f"the state has head size {state.mass.shape[-1]} and the query {query.shape[-1]}: "
            "apply a state only to queries of the size it was made with."
        )
    if _by_triton(kernel, query, state.memory.shape[-1], feature_map):
        return operators.linear_attention_apply(query, state.memory, state.mass, feature_map)
    return _apply(query, state, feature_map)


def _by_triton(kernel: Kernel, x: Tensor, value_size: int, feature_map_name: str) -> bool:
    if kernel == "auto":
        return operators.runs_triton(x, value_size) and feature_map_name in FEATURE_MAPS
    if kernel not in ("torch", "triton"):
        raise InputError(f"kernel={kernel!r} is not known: use auto, torch or triton.")
    if kernel == "torch":
        return False
    if not operators.HAS_TRITON:
        raise InputError("kernel='triton' needs the package triton: pip install triton, or use auto.")
    if x.dtype == torch.float64 or max(x.shape[-1], value_size) > operators.LARGEST_HEAD:
        raise InputError(
            f"kernel='triton' takes heads of up to {operators.LARGEST_HEAD} channels in float32 or less, "
            f"not {max(x.shape[-1], value_size)} in {x.dtype}. Use auto."
        )
    if feature_map_name not in FEATURE_MAPS:
        feature_map(x, feature_map_name)  # says which are known
    return True


def _check_mask(key: Tensor, mask: Tensor | None) -> None:
    if mask is not None and mask.shape != (key.shape[0], key.shape[2]):
        raise ShapeError(
            f"mask of shape {tuple(mask.shape)} does not fit {key.shape[0]} rows of {key.shape[2]} keys: "
            f"give a bool mask of shape ({key.shape[0]}, {key.shape[2]})."
        )


def _apply(query: Tensor, state: LinearAttentionState, feature_map_name: str) -> Tensor:
    features = feature_map(_widen(query), feature_map_name)
    with _without_autocast(query.device):
        denominator = features @ state.mass.unsqueeze(-1) + EPS
        return (features @ state.memory / denominator).to(query.dtype)


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast would round the sums to half precision, where they overflow (float16) or lose small values."""
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype.itemsize >= 4 else x.float()
