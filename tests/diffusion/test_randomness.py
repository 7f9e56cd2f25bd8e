"""Noise: a function of each sample's seed, and of nothing else."""

import pytest
import torch

from lineardit.diffusion.randomness import StepNoise, hashed_seed, seeded_noise
from lineardit.errors import InputError

SHAPE = (3, 2, 7)


def test_the_noise_of_a_seed_does_not_depend_on_its_batch():
    together = seeded_noise(SHAPE, [11, 7, 11, 5])
    alone = seeded_noise(SHAPE, [7])
    assert together.shape == (4, *SHAPE)
    assert torch.equal(together[1], alone[0])
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])


def test_the_noise_of_a_seed_is_the_float32_noise_in_every_dtype():
    single = seeded_noise(SHAPE, [1, 2])
    assert torch.equal(seeded_noise(SHAPE, [1, 2], dtype=torch.float64), single.double())
    assert torch.equal(seeded_noise(SHAPE, [1, 2], dtype=torch.bfloat16), single.bfloat16())


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    seeded_noise(SHAPE, [1])
    StepNoise([1])(3, torch.zeros(1, *SHAPE))
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_and_hashes_stay_what_they_are():
    recorded = torch.tensor([-0.820135, 0.395631, 0.898908, -1.388404])
    torch.testing.assert_close(seeded_noise((4, 8), [7])[0, 0, :4], recorded, rtol=0.0, atol=1e-5)
    assert hashed_seed(7, 3) == 802990807355315380


def test_noise_is_normal():
    noise = seeded_noise((1000,), range(100))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_step_noise_depends_on_seed_and_step_but_not_on_the_batch():
    like = torch.zeros(2, *SHAPE, dtype=torch.float64)
    noise = StepNoise([4, 9])
    assert noise(1, like).dtype == torch.float64
    assert torch.equal(noise(1, like), noise(1, like))
    assert not torch.equal(noise(1, like), noise(2, like))
    assert not torch.equal(noise(1, like)[0], noise(1, like)[1])
    assert torch.equal(noise(2, like)[1:], StepNoise([9])(2, like[1:]))


def test_hashed_seeds_differ_by_part_order_and_kind():
    seeds = [hashed_seed(*parts) for parts in [(1, 2), (2, 1), (12,), ("12",), (1, 2, 0), ("1", 2), ()]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_no_generator_takes_is_refused(seed: int):
    with pytest.raises(InputError, match="does not lie in 0"):
        seeded_noise(SHAPE, [0, seed])
