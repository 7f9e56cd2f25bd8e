"""Times and places as vectors, against diffusers and against their formulas."""

import pytest
import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed

from lineardit.nn.embedding import ScalarEmbedding, grid_positions, sinusoids

TIMES = torch.tensor([0.0, 0.1, 1.0, 37.5, 371.0, 999.0, 1000.0])


def test_the_sinusoids_of_a_time_are_those_of_diffusers() -> None:
    theirs = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(TIMES)
    # Not just close: at t = 1000 one bit of a frequency is 6e-5 of the sine.
    torch.testing.assert_close(sinusoids(TIMES, 256), theirs, rtol=0, atol=1e-7)


def test_sinusoids_are_cosines_then_sines_of_falling_frequencies() -> None:
    x = torch.tensor([3.7], dtype=torch.float64)
    frequencies = 10_000.0 ** (-torch.arange(5, dtype=torch.float64) / 5)
    expected = torch.cat([(x * frequencies).cos(), (x * frequencies).sin()])[None]
    torch.testing.assert_close(sinusoids(x, 10), expected)


def test_half_precision_times_are_widened_first() -> None:
    # 257 is no bfloat16, 256 is: the frequencies must not be rounded like that.
    out = sinusoids(torch.tensor([256.0], dtype=torch.bfloat16), 32)
    assert torch.equal(out, sinusoids(torch.tensor([256.0]), 32))


@torch.no_grad()
def test_the_embedding_of_a_number_is_that_of_diffusers() -> None:
    theirs, ours = TimestepEmbedding(256, 11), ScalarEmbedding(11)
    state = theirs.state_dict()
    ours.load_state_dict(
        {
            f"{own}.{part}": state[f"{foreign}.{part}"]
            for own, foreign in (("first", "linear_1"), ("second", "linear_2"))
            for part in ("weight", "bias")
        }
    )
    expected = theirs(Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(TIMES))
    torch.testing.assert_close(ours(TIMES), expected, rtol=0, atol=1e-6)


def test_the_embedding_has_the_dtype_of_its_weights() -> None:
    assert ScalarEmbedding(11).bfloat16()(TIMES).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("height", "width", "base", "interpolation"),
    [(5, 5, 5, 1.0), (5, 7, 5, 1.0), (7, 3, 32, 1.0), (96, 128, 64, 1.0), (128, 128, 128, 2.0)],
)
def test_positions_are_those_of_diffusers(height: int, width: int, base: int, interpolation: float) -> None:
    theirs = get_2d_sincos_pos_embed(
        28, (height, width), base_size=base, interpolation_scale=interpolation, output_type="pt"
    )
    ours = grid_positions(height, width, 28, base=base, interpolation=interpolation)
    assert ours.shape == (1, height * width, 28) and ours.dtype == torch.float32
    torch.testing.assert_close(ours[0], theirs.float(), rtol=0, atol=1e-6)


def test_tokens_are_counted_row_by_row_and_the_first_half_tells_the_column() -> None:
    positions = grid_positions(3, 5, 28, base=3).unflatten(1, (3, 5))[0]
    assert (positions[:, :, :14] == positions[:1, :, :14]).all()
    assert (positions[:, :, 14:] == positions[:, :1, 14:]).all()
    assert (positions[0, 1, :14] != positions[0, 2, :14]).any()


def test_a_larger_grid_spans_the_coordinates_of_the_one_it_was_made_for() -> None:
    small, large = grid_positions(4, 4, 28, base=4), grid_positions(8, 8, 28, base=4)
    every_second = large.unflatten(1, (8, 8))[:, ::2, ::2].flatten(1, 2)
    torch.testing.assert_close(every_second, small)
