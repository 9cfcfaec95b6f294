"""Areas with confidence intervals, against the worked example of the paper."""

import numpy as np
import pytest

from deflect_hf.inference.report import estimate_areas


def test_the_example_of_the_paper() -> None:
    # Olofsson et al. 2014, tables 8 and 9: deforestation, forest gain, stable forest, stable non-forest; pixels of 30 m
    by_map = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
    hectares = np.array([200_000, 150_000, 3_200_000, 6_450_000]) * 0.09
    found = estimate_areas(by_map.T, hectares)
    areas, half = found
    assert areas == pytest.approx([21_158, 11_686, 285_770, 581_386], abs=1)
    assert half == pytest.approx([6_158, 3_756, 15_510, 16_282], rel=2e-3)
    assert areas.sum() == pytest.approx(hectares.sum())


def test_a_mapped_class_without_reference_has_no_estimate() -> None:
    assert estimate_areas(np.array([[5, 0], [0, 1]]), np.array([10.0, 10.0])) is None
    found = estimate_areas(np.array([[5, 0], [1, 0]]), np.array([10.0, 0.0]))
    assert found is not None and found[0] == pytest.approx([50 / 6, 10 / 6])
