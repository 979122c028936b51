"""Position embeddings at another number of patches, by each family's rule, against interpolation."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn.functional import interpolate

from imagenets.learning.networks.position_embeddings import (
    ANTIALIAS,
    BICUBIC,
    BILINEAR,
    DINO,
    RADIO,
    grid_embeddings,
    on_a_square,
    resized,
)

SIDE, CHANNELS = 6, 5


def random_embeddings(patches=SIDE**2, prefix=1):
    return torch.randn(1, prefix + patches, CHANNELS, generator=torch.Generator().manual_seed(0))


def by_rule(rule, embeddings, prefix, height, width):
    square = embeddings[:, prefix:].mT.reshape(1, CHANNELS, SIDE, SIDE)
    factors, longer = ((height + 0.1) / SIDE, (width + 0.1) / SIDE), (max(height, width),) * 2
    moved = {
        DINO: lambda: interpolate(square, scale_factor=factors, mode="bicubic"),
        ANTIALIAS: lambda: interpolate(square, (height, width), mode="bicubic", antialias=True),
        BICUBIC: lambda: interpolate(square, (height, width), mode="bicubic"),
        BILINEAR: lambda: interpolate(square, (height, width), mode="bilinear"),
        RADIO: lambda: interpolate(square, longer, mode="bilinear")[:, :, :height, :width],
    }[rule]()
    return torch.cat([embeddings[:, :prefix], moved.flatten(2).mT], dim=1)


@pytest.mark.parametrize("rule", [DINO, ANTIALIAS, BICUBIC, BILINEAR, RADIO])
def test_patches_are_interpolated_and_tokens_before_them_kept(rule):
    for grid, prefix in product([(3, 8), (8, 4), (9, 4), (4, 4), (7, 7)], [0, 1, 5]):
        embeddings = random_embeddings(prefix=prefix)
        found = grid_embeddings(embeddings, prefix, grid, (grid[0] * 16, grid[1] * 16), rule)
        expected = by_rule(rule, embeddings, prefix, *grid)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "grid", "size", "stay"),
    [
        (DINO, (6, 6), (96, 96), True),
        (DINO, (6, 6), (96, 100), False),  # not a square picture: factors 6.1 / 6
        (DINO, (4, 9), (64, 144), False),  # as many patches, but elsewhere
        (BICUBIC, (6, 6), (96, 96), True),
        (BILINEAR, (6, 6), (96, 100), True),
        (RADIO, (6, 6), (96, 100), True),
        (RADIO, (4, 9), (64, 144), False),
    ],
)
def test_embeddings_that_fit_stay_as_they_are(rule, grid, size, stay):
    embeddings = random_embeddings()
    assert (grid_embeddings(embeddings, 1, grid, size, rule) is embeddings) == stay


def test_half_precision_is_interpolated_in_float32():
    half = random_embeddings().half()
    found = grid_embeddings(half, 1, (3, 8), (48, 128), BICUBIC)
    assert found.dtype == torch.float16
    assert torch.equal(found, grid_embeddings(half.float(), 1, (3, 8), (48, 128), BICUBIC).half())


def test_a_files_embeddings_become_a_networks_bicubically():
    embeddings = random_embeddings()
    expected = by_rule(BICUBIC, embeddings, 1, 4, 4)
    torch.testing.assert_close(resized(embeddings, 1, 16), expected, atol=1e-6, rtol=1e-6)
    assert resized(embeddings, 1, 36) is embeddings
    for patches, wanted in ((36, 15), (35, 16)):
        with pytest.raises(ValueError, match="do not lie on a square"):
            resized(random_embeddings(patches), 1, wanted)


def test_a_square_has_a_square_number_of_patches_and_at_least_one():
    assert on_a_square(random_embeddings(9), 1) and on_a_square(random_embeddings(1), 1)
    assert not on_a_square(random_embeddings(8), 1) and not on_a_square(random_embeddings(0), 1)
    assert not on_a_square(random_embeddings(9)[0], 1)
