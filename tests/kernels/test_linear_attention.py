"""The operator against its definition, which spells out every weight in float64."""

import itertools

import jaxtyping
import pytest
import torch
from torch import Tensor

from lineardit.errors import InputError, ShapeError
from lineardit.kernels.linear_attention import LinearAttentionState, linear_attention, linear_attention_state
from lineardit.kernels.reference import FEATURE_MAPS, features, quadratic_linear_attention

BATCH, HEADS, QUERIES, KEYS, DIM, VALUE_DIM = 2, 3, 7, 11, 5, 13


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(queries: int = QUERIES, keys: int = KEYS) -> tuple[Tensor, Tensor, Tensor]:
    return (
        randn(BATCH, HEADS, queries, DIM, seed=1),
        randn(BATCH, HEADS, keys, DIM, seed=2),
        randn(BATCH, HEADS, keys, VALUE_DIM, seed=3),
    )


def ragged(keys: int = KEYS) -> Tensor:
    """The second row keeps every third key only."""
    return torch.stack([torch.ones(keys, dtype=torch.bool), torch.arange(keys) % 3 == 0])


@pytest.fixture
def unchecked() -> None:
    """Shapes as in a user's run, where annotations are not enforced and our own errors must speak."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("name", FEATURE_MAPS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(7, 11), (11, 7), (1, 1), (1, 17), (31, 1), (37, 41)])
def test_it_equals_the_definition(name: str, masked: bool, queries: int, keys: int) -> None:
    query, key, value = inputs(queries, keys)
    mask = ragged(keys) if masked else None
    expected = quadratic_linear_attention(query, key, value, feature_map=name, mask=mask)
    out = linear_attention(query, key, value, feature_map=name, mask=mask)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_the_definition_is_the_weighted_mean_written_out() -> None:
    query, key, value = inputs()
    mask = ragged()
    out = quadratic_linear_attention(query, key, value, feature_map="elu1", mask=mask)
    b, h, i = 1, 2, 3
    total, mass = torch.zeros(VALUE_DIM, dtype=torch.float64), 0.0
    for j in range(KEYS):
        if mask[b, j]:
            positive = [torch.where(x > 0, x + 1, x.exp()) for x in (query[b, h, i], key[b, h, j])]
            weight = float(positive[0] @ positive[1])
            total, mass = total + weight * value[b, h, j], mass + weight
    torch.testing.assert_close(out[b, h, i], total / mass, rtol=1e-12, atol=1e-12)


def test_float32_is_as_close_as_float32_can_be() -> None:
    query, key, value = inputs(37, 41)
    expected = quadratic_linear_attention(query, key, value)
    out = linear_attention(query.float(), key.float(), value.float())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_at_the_end(dtype: torch.dtype) -> None:
    query, key, value = (x.to(dtype) for x in inputs(37, 1009))
    exact = quadratic_linear_attention(query.double(), key.double(), value.double())
    out = linear_attention(query, key, value)
    assert out.dtype == dtype
    # One unit in the last place, where sums in half precision would be off by dozens.
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_sums_that_float16_cannot_hold_are_no_problem() -> None:
    query = torch.full((1, 1, 3, 7), 8.0, dtype=torch.float16)
    key = torch.full((1, 1, 1009, 7), 8.0, dtype=torch.float16)
    value = torch.full((1, 1, 1009, 5), 100.0, dtype=torch.float16)
    assert (key.transpose(-1, -2) @ value).isinf().all()
    assert torch.equal(linear_attention(query, key, value), torch.full_like(value[:, :, :3], 100.0))


def test_autocast_does_not_touch_the_sums() -> None:
    query, key, value = (x.float() for x in inputs())
    expected = linear_attention(query, key, value)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_attention(query, key, value)
        state = linear_attention_state(key, value)
    assert out.dtype == state.memory.dtype == torch.float32
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    query, key, value = (x[:, :2, :3, :5].clone().requires_grad_() for x in inputs())
    mask = torch.tensor([[True, True, True], [False, True, True]])

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return linear_attention(query, key, value, feature_map=name, mask=mask)

    assert torch.autograd.gradcheck(attend, (query, key, value))


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_gradients_equal_those_of_the_definition(name: str) -> None:
    ours, theirs = ([x.clone().requires_grad_() for x in inputs()] for _ in range(2))
    pull = randn(BATCH, HEADS, QUERIES, VALUE_DIM, seed=4)
    linear_attention(*ours, feature_map=name, mask=ragged()).backward(pull)
    quadratic_linear_attention(*theirs, feature_map=name, mask=ragged()).backward(pull)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_a_row_whose_keys_are_all_masked_is_zero_and_so_are_its_gradients() -> None:
    query, key, value = (x.float().requires_grad_() for x in inputs())
    mask = ragged()
    mask[1] = False
    out = linear_attention(query, key, value, mask=mask)
    assert out[0].abs().max() > 0 and torch.equal(out[1], torch.zeros_like(out[1]))
    out.sum().backward()
    for x in (query, key, value):
        assert x.grad is not None and x.grad.isfinite().all()
        assert torch.equal(x.grad[1], torch.zeros_like(x.grad[1]))


def test_a_query_without_any_positive_feature_gives_zero() -> None:
    query, key, value = inputs()
    query[0, 1, 2] = -1.0
    out = linear_attention(query, key, value)
    assert out.isfinite().all() and torch.equal(out[0, 1, 2], torch.zeros(VALUE_DIM, dtype=torch.float64))


def test_permuting_queries_permutes_the_output_and_permuting_keys_changes_nothing() -> None:
    query, key, value = inputs()
    mask, expected = ragged(), linear_attention(*inputs(), mask=ragged())
    order, shuffled = torch.randperm(QUERIES), torch.randperm(KEYS)
    out = linear_attention(query[:, :, order], key, value, mask=mask)
    torch.testing.assert_close(out, expected[:, :, order], rtol=1e-12, atol=1e-12)
    out = linear_attention(query, key[:, :, shuffled], value[:, :, shuffled], mask=mask[:, shuffled])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_the_output_is_linear_in_the_values() -> None:
    query, key, value = inputs()
    other = randn(*value.shape, seed=5)
    mixed = linear_attention(query, key, 2 * value - 3 * other)
    apart = 2 * linear_attention(query, key, value) - 3 * linear_attention(query, key, other)
    torch.testing.assert_close(mixed, apart, rtol=1e-10, atol=1e-12)


def test_the_scale_of_queries_and_keys_cancels() -> None:
    query, key, value = inputs()
    out = linear_attention(100 * query, 0.01 * key, value)
    torch.testing.assert_close(out, linear_attention(query, key, value), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_states_of_chunks_add_up_to_the_state_of_all_keys(name: str) -> None:
    query, key, value = inputs()
    mask = ragged()
    expected = linear_attention(query, key, value, feature_map=name, mask=mask)
    chunks = [
        linear_attention_state(k, v, feature_map=name, mask=m)
        for k, v, m in zip(key.split(4, 2), value.split(4, 2), mask.split(4, 1), strict=True)
    ]
    assert len(chunks) == 3
    for first, second, third in itertools.permutations(chunks):
        state = first + second + third
        assert isinstance(state, LinearAttentionState)
        out = linear_attention(query, None, None, feature_map=name, state=state)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_keys_beside_a_state_count_too() -> None:
    query, key, value = inputs()
    state = linear_attention_state(key[:, :, :4], value[:, :, :4])
    out = linear_attention(query, key[:, :, 4:], value[:, :, 4:], state=state)
    torch.testing.assert_close(out, linear_attention(query, key, value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_state_is_float32_whatever_its_keys_are(dtype: torch.dtype) -> None:
    _, key, value = inputs()
    state = linear_attention_state(key.to(dtype), value.to(dtype))
    assert state.memory.shape == (BATCH, HEADS, DIM, VALUE_DIM) and state.mass.shape == (BATCH, HEADS, DIM)
    assert state.memory.dtype == state.mass.dtype == torch.float32


def test_the_batch_does_not_change_a_row() -> None:
    query, key, value = inputs()
    together = linear_attention(query, key, value)
    alone = torch.cat([linear_attention(query[i : i + 1], key[i : i + 1], value[i : i + 1]) for i in (0, 1)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_feature_maps_are_what_their_papers_say() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    assert features(x, "relu").tolist() == [0.0, 0.0, 3.0]
    torch.testing.assert_close(features(x, "elu1"), torch.cat([x[:2].exp(), x[2:] + 1]))


def test_an_unknown_feature_map_is_named_beside_the_known_ones() -> None:
    query, key, value = inputs()
    with pytest.raises(InputError, match="feature_map='softmax' is not known: use one of relu, elu1"):
        linear_attention(query, key, value, feature_map="softmax")


def test_nothing_to_attend_to_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to attend to: give key and value, or a state"):
        linear_attention(inputs()[0], None, None)


@pytest.mark.parametrize("given", ["key", "value", "mask"])
def test_keys_values_and_mask_come_together_or_not_at_all(given: str) -> None:
    query, key, value = inputs()
    state = linear_attention_state(key, value)
    parts = {"key": key if given == "key" else None, "value": value if given == "value" else None}
    with pytest.raises(InputError, match="key, value and mask belong together"):
        linear_attention(query, **parts, mask=ragged() if given == "mask" else None, state=state)


def test_a_state_for_heads_of_another_size_is_refused() -> None:
    query, key, value = inputs()
    state = linear_attention_state(key[..., :3], value)
    with pytest.raises(ShapeError, match="state has head size 3 and the query 5"):
        linear_attention(query, None, None, state=state)


@pytest.mark.usefixtures("unchecked")
def test_an_integer_query_is_refused() -> None:
    query, key, value = inputs()
    with pytest.raises(InputError, match=r"query has dtype torch.int64: give float32"):
        linear_attention(query.long(), key, value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(BATCH, KEYS + 1), (BATCH + 1, KEYS), (1, KEYS)])
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    mask = torch.ones(shape, dtype=torch.bool)
    with pytest.raises(
        ShapeError, match=r"does not fit 2 rows of 11 keys: give a bool mask of shape \(2, 11\)"
    ):
        linear_attention(*inputs(), mask=mask)
