"""The definition of linear attention, written for reading: every kernel is tested against it in float64."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lineardit.errors import InputError

EPS = 1e-15
"""Added to the denominator: a query whose features are all zero gives zero, not NaN."""

FEATURE_MAPS = ("relu", "elu1")


def features(x: Float[Tensor, "*shape"], feature_map: str) -> Float[Tensor, "*shape"]:
    """phi(x): `relu` as SANA has it, or `elu1` = ELU(x) + 1 (Katharopoulos et al., arXiv:2006.16236).

    Raises:
        InputError: the name is neither.
    """
    if feature_map == "relu":
        return functional.relu(x)
    if feature_map == "elu1":
        return functional.elu(x) + 1
    raise InputError(f"{feature_map=} is not known: use one of {', '.join(FEATURE_MAPS)}.")


def quadratic_linear_attention(
    query: Float[Tensor, "b heads n d"],
    key: Float[Tensor, "b heads m d"],
    value: Float[Tensor, "b heads m e"],
    *,
    feature_map: str = "relu",
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b heads n e"]:
    """out_i = sum_j w_ij value_j / (sum_j w_ij + EPS), with w_ij = phi(query_i) . phi(key_j).

    Spells out the (n, m) weights, so it costs what softmax attention costs; `mask` keeps the true keys.
    """
    queries, keys = features(query, feature_map), features(key, feature_map)
    weights = torch.einsum("bhnd,bhmd->bhnm", queries, keys)
    if mask is not None:
        weights = weights * mask[:, None, None, :]
    return torch.einsum("bhnm,bhme->bhne", weights, value) / (weights.sum(-1, keepdim=True) + EPS)
