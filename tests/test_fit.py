"""Several pictures below one limit."""

import io

import numpy as np
import pytest
import torch
from pack.nodes.core.media import images
from pack.nodes.core.media.fit import _common_size, encode_all
from PIL import Image


def noise(side, seed):
    generator = torch.Generator().manual_seed(seed)
    return images.check(torch.rand((side, side, 3), generator=generator), f"picture {seed}")


def flat(side):
    return images.check(torch.zeros((side, side, 3)), "flat")


@pytest.mark.parametrize(
    ("sizes", "total", "common"),
    [
        ([10, 10], 20, 10),
        ([10, 10], 10, 5),
        ([1, 10, 10], 11, 5),
        ([1, 2, 30], 10, 7),
        ([4, 4, 4], 3, 1),
    ],
)
def test_the_largest_give_way_first(sizes, total, common):
    assert _common_size(sizes, total) == common
    assert sum(min(size, common) for size in sizes) <= total


def test_what_fits_is_left_alone():
    pictures = [noise(400, 1), flat(400)]
    free = encode_all(pictures, max_bytes=1 << 20)
    assert encode_all(pictures, max_bytes=1 << 20, max_total_bytes=2 << 20) == free


def test_all_together_fit_and_the_small_ones_stay_as_they_are():
    pictures = [noise(700, 1), flat(400), noise(700, 2)]
    made = encode_all(pictures, max_bytes=2 << 20, max_total_bytes=700_000)
    assert sum(len(one.data) for one in made) <= 700_000
    assert [one.content_type for one in made] == ["image/jpeg", "image/png", "image/jpeg"]
    assert made[0].notes and not made[1].notes
    for one in made:
        assert np.asarray(Image.open(io.BytesIO(one.data))).shape[2] == 3


def test_a_picture_that_is_sent_twice_counts_twice():
    pictures = [noise(700, 1), flat(400)]
    made = encode_all(pictures, max_bytes=2 << 20, max_total_bytes=700_000, copies=[2, 1])
    assert 2 * len(made[0].data) + len(made[1].data) <= 700_000
