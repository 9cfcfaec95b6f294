import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from deflect_hf.models.geovit.embeddings import plane_positions, resized_table, volume_positions
from tests.models.geovit.published import plane, volume

SIDES = st.integers(1, 20)


@pytest.mark.parametrize(
    ("gsd", "token", "channel", "expected"),
    [
        (1.0, 1, 0, [0.84147, 0.82186, 0.80196]),
        (1.0, 1, 512, [0.0, 0.0]),
        (1.0, 1, 768, [1.0, 1.0]),
        (1.0, 14, 512, [0.84147, 0.82186, 0.80196]),
        (10.0, 1, 0, [-0.54402, -0.22002, 0.11878]),
    ],
)
def test_values_published_for_scale_mae(gsd, token, channel, expected):
    table = plane_positions(14, 14, 1024, torch.tensor([gsd]))
    assert table.shape == (1, 196, 1024)
    assert table[0, token, channel : channel + len(expected)].tolist() == pytest.approx(expected, abs=1e-5)


@given(rows=SIDES, columns=SIDES, scale=st.floats(0.1, 20))
@settings(max_examples=30, deadline=None)
def test_planes_equal_the_authors_formula(rows, columns, scale):
    ours = plane_positions(rows, columns, 32, torch.tensor([scale]))[0].numpy()
    # A sine's error in float32 is that of its angle, here up to 20 * 20.
    np.testing.assert_allclose(ours, plane(rows, columns, 32, np.float32(scale)), atol=1e-4)


@given(frames=st.integers(1, 5), rows=SIDES, columns=SIDES)
@settings(max_examples=30, deadline=None)
def test_volumes_equal_the_authors_formula(frames, rows, columns):
    ours = volume_positions(frames, rows, columns, 48, torch.device("cpu"))[0].numpy()
    np.testing.assert_allclose(ours, volume(frames, rows, columns, 48), atol=5e-6)


def test_one_frame_is_the_first_of_the_stored_ones():
    # Prithvi-EO-1.0: (1, 589, 768) with the class token, 3 frames of 14 x 14.
    three = volume_positions(3, 14, 14, 768, torch.device("cpu"))
    assert three.shape == (1, 588, 768)
    assert torch.equal(volume_positions(1, 14, 14, 768, torch.device("cpu")), three[:, :196])


def test_each_image_has_its_own_ground_sampling_distance():
    both = plane_positions(4, 6, 32, torch.tensor([1.0, 2.5]))
    assert torch.equal(both[:1], plane_positions(4, 6, 32, torch.tensor([1.0])))
    assert torch.equal(both[1:], plane_positions(4, 6, 32, torch.tensor([2.5])))


def test_positions_are_float32_inside_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        table = plane_positions(14, 14, 64, torch.tensor([3.5]))
    assert torch.equal(table, plane_positions(14, 14, 64, torch.tensor([3.5])))


def test_a_table_of_the_same_grid_is_left_alone():
    table = torch.randn(1, 12, 8)
    assert resized_table(table, (3, 4), 3, 4) is table


def test_a_square_table_is_resized_as_dino_does():
    # DINO's code for an image of 20 x 36 patches on a table of 28 x 28.
    table = torch.randn(1, 784, 8, generator=torch.Generator().manual_seed(0))
    factors = ((20 + 0.1) / 28, (36 + 0.1) / 28)
    expected = F.interpolate(table.reshape(1, 28, 28, 8).permute(0, 3, 1, 2), scale_factor=factors, mode="bicubic")
    assert expected.shape[-2:] == (20, 36)
    ours = resized_table(table, (28, 28), 20, 36)
    assert torch.equal(ours, expected.permute(0, 2, 3, 1).reshape(1, -1, 8))


@given(rows=st.integers(1, 64), columns=st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_a_table_reaches_every_grid(rows, columns):
    assert resized_table(torch.zeros(1, 784, 2), (28, 28), rows, columns).shape == (1, rows * columns, 2)
