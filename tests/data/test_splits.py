"""Which example belongs to which split."""

from collections import Counter

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.splits import hold_out, keep_share, split_indices
from deflect_hf.errors import DataError

PLACES = {"name": "folder", "root": "images", "place_km": 5.0}


@given(
    strata=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    val=st.floats(0.0, 0.45),
    test=st.floats(0.0, 0.45),
    seed=st.integers(0, 99),
)
def test_every_example_is_in_one_split_and_every_class_is_trained(
    strata: list[int], val: float, test: float, seed: int
) -> None:
    splits = split_indices(strata, DatasetArguments(val_fraction=val, test_fraction=test, seed=seed))
    assert sorted(index for members in splits.values() for index in members) == list(range(len(strata)))
    assert {strata[i] for i in splits["train"]} == set(strata)
    for name, share in (("val", val), ("test", test)):
        for stratum, count in Counter(strata).items():
            have = sum(strata[i] == stratum for i in splits.get(name, []))
            assert have <= max(1, round(count * share))
            assert have == 0 or share > 0


@given(st.lists(st.integers(0, 2), min_size=6, max_size=50), st.floats(0.05, 0.9), st.integers(0, 9))
def test_what_is_held_out_is_not_kept(strata: list[int], fraction: float, seed: int) -> None:
    kept, held = hold_out(strata, fraction, seed)
    assert sorted(kept + held) == list(range(len(strata)))
    assert {strata[i] for i in kept} == set(strata)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=50), st.floats(0.01, 1.0), st.integers(0, 9))
def test_a_share_keeps_every_class(strata: list[int], fraction: float, seed: int) -> None:
    kept = keep_share(strata, fraction, seed)
    assert {strata[i] for i in kept} == set(strata)
    assert set(keep_share(strata, fraction / 2, seed)) <= set(kept)
    places = [number // 3 for number in range(len(strata))]
    whole = keep_share(strata, fraction, seed, places)
    assert whole and not {places[i] for i in whole} & {places[i] for i in set(range(len(strata))) - set(whole)}
    assert set(keep_share(strata, fraction / 2, seed, places)) <= set(whole)
    assert abs(len(whole) - fraction * len(strata)) <= 3


@given(counts=st.lists(st.integers(3, 11), min_size=1, max_size=5), folds=st.integers(2, 3), seed=st.integers(0, 9))
def test_every_example_is_tested_in_one_of_even_folds(counts: list[int], folds: int, seed: int) -> None:
    strata = [stratum for stratum, count in enumerate(counts) for _ in range(count)]
    tests = [
        split_indices(strata, DatasetArguments(num_folds=folds, fold=fold, seed=seed))["test"] for fold in range(folds)
    ]
    assert sorted(index for test in tests for index in test) == list(range(len(strata)))
    for groups in (tests, *([[i for i in test if strata[i] == stratum] for test in tests] for stratum in set(strata))):
        sizes = [len(group) for group in groups]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1


@given(
    places=st.lists(st.integers(0, 9), min_size=1, max_size=60).filter(lambda places: len(set(places)) >= 4),
    folds=st.sampled_from([None, 2, 4]),
    seed=st.integers(0, 9),
)
def test_a_place_is_in_one_split(places: list[int], folds: int | None, seed: int) -> None:
    tested: list[int] = []
    for fold in range(folds or 1):
        args = DatasetArguments(**PLACES, num_folds=folds, fold=fold, seed=seed, val_fraction=0.2)
        try:
            splits = split_indices([None] * len(places), args, places)
        except DataError as error:  # one of two folds is a place as large as all others but the smallest together
            sizes = sorted(Counter(places).values())
            assert folds == 2 and sum(sizes[1:-1]) < sizes[-1] and "leaves one place" in str(error)
            reject()
        assert set(splits) == {"train", "val", "test"}
        assert sorted(index for members in splits.values() for index in members) == list(range(len(places)))
        apart = [{places[i] for i in members} for members in splits.values()]
        assert len(set().union(*apart)) == sum(map(len, apart))
        tested += splits["test"]
    assert folds is None or sorted(tested) == list(range(len(places)))


def test_too_few_places_are_refused() -> None:
    with pytest.raises(DataError, match=r"place_km=5 makes 2 place\(s\) of 9 images, but 3 are needed: lower place_km"):
        split_indices([None] * 9, DatasetArguments(**PLACES), [0] * 5 + [1] * 4)


def test_too_few_images_for_the_folds_are_refused() -> None:
    with pytest.raises(DataError, match=r"The data set has 3 image\(s\), too few for num_folds=5"):
        split_indices([None] * 3, DatasetArguments(num_folds=5))


def test_a_place_that_holds_most_images_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    split_indices([None] * 9, DatasetArguments(**PLACES), [0] * 4 + [1, 1, 2, 3, 4])
    assert not caplog.text
    split_indices([None] * 9, DatasetArguments(**PLACES), [0] * 5 + [1, 1, 2, 3])
    assert "place_km=5: one place holds 5 of 9 images, by way of images in between: choose a smaller" in caplog.text


def test_a_share_that_whole_places_or_classes_move_is_told(caplog: pytest.LogCaptureFixture) -> None:
    keep_share([None] * 40, 0.25, 0)
    keep_share([None] * 40, 0.25, 0, list(range(40)))
    assert not caplog.text
    assert len(keep_share(list(range(20)), 0.05, 0)) == 20
    assert "limited_label=0.05 keeps 20 of the 20 training images, 100 %: at least one of each class" in caplog.text
    kept = keep_share([None] * 30, 0.1, 0, [0] * 15 + [1] * 15)
    assert len(kept) == 15 and "keeps 15 of the 30 training images, 50 %: a place is kept whole" in caplog.text
