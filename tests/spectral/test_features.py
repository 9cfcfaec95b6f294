import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deflect_hf.errors import BandError, ConfigError, DataError
from deflect_hf.spectral.features import SpectralFeatures
from deflect_hf.spectral.indices import select_indices
from deflect_hf.spectral.probe import bound_of

BANDS = ["A", "B", "G", "R", "RE1", "RE2", "RE3", "N", "N2", "WV", "S1", "S2"]
DEFAULT = select_indices(BANDS, "default").formulas
SMALL = {"NDVI": "(N-R)/(N+R)", "EVI": "2.5*(N-R)/(N+6*R-7.5*B+1)", "S2REP": "705+35*((R+N)/2-B)/(N-B)"}


def images(batch: int = 2, height: int = 16, width: int = 24, channels: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    bright = torch.rand(batch, 1, height, width, generator=generator) * 0.5 + 0.01
    return bright * (0.5 + torch.rand(batch, channels, height, width, generator=generator))


def small(**options) -> SpectralFeatures:
    return SpectralFeatures(["B", "R", "N"], SMALL, (4, 8), **options)


def reference(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(3, H, W) -> (N, 12) in plain float64 numpy: means, then standard deviations, of B, R, N and SMALL."""
    b, r, n = image.astype(np.float64)
    with np.errstate(all="ignore"):
        features = [b, r, n, np.clip((n - r) / (n + r), -1, 1), 2.5 * (n - r) / (n + 6 * r - 7.5 * b + 1)]
        features += [705 + 35 * ((r + n) / 2 - b) / (n - b)]
        for i, name in ((4, "EVI"), (5, "S2REP")):
            features[i] = np.clip(features[i], -bound_of(SMALL[name]), bound_of(SMALL[name]))
    patches = []
    for top in range(0, image.shape[1], size[0]):
        for left in range(0, image.shape[2], size[1]):
            pixels = [f[top : top + size[0], left : left + size[1]].ravel() for f in features]
            pixels = [p[np.isfinite(p)] for p in pixels]
            patches.append(
                [p.mean() if p.size else np.nan for p in pixels] + [p.std() if p.size else np.nan for p in pixels]
            )
    return np.array(patches)


def test_statistics_equal_a_plain_float64_reference():
    image = images(channels=3)
    image[0, 1, :3, :5] = torch.nan  # R: NDVI, EVI and S2REP lose these pixels, B and N do not
    image[0, :, 4:8, 8:16] = torch.nan  # a whole patch
    image[1, 0, 8:12, 0:8] = torch.nan  # a whole patch of B only
    computed = small().raw_statistics(image)
    assert computed.shape == (2, 12, 12)
    for one, expected in zip(computed, image, strict=True):
        np.testing.assert_allclose(one.numpy(), reference(expected.numpy(), (4, 8)), rtol=2e-4, atol=2e-6)


def test_a_small_spread_around_a_large_mean_is_kept():
    features = SpectralFeatures(["R"], {"high": "1000 + 0*R + R"}, (16, 16))
    image = images(1, 16, 16, 1)
    assert bound_of("1000 + 0*R + R") == 10000
    _, _, spread, of_index = features.raw_statistics(image)[0, 0]
    assert of_index.item() == pytest.approx(spread.item(), rel=1e-3)


def test_each_feature_is_valid_where_the_bands_it_uses_are():
    features = SpectralFeatures(BANDS, DEFAULT, (8, 8))
    image = images()
    broken = image.clone()
    broken[:, BANDS.index("S2")] = torch.nan
    whole, holed = features(image), features(broken)
    using = [i for i, name in enumerate(features.feature_names) if name == "S2" or "S2" in DEFAULT.get(name, "")]
    using += [i + len(features.feature_names) for i in using]
    others = [i for i in range(features.num_features) if i not in using]
    assert torch.equal(whole[..., others], holed[..., others])
    assert len(using) > 4
    assert not holed[..., using].any()


def test_patches_are_in_the_order_of_a_strided_convolution():
    features = SpectralFeatures(["R"], {}, (4, 8))
    image = images(channels=1)
    kernel = torch.full((1, 1, 4, 8), 1 / 32)
    expected = torch.nn.functional.conv2d(image, kernel, stride=(4, 8)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(features(image)[..., :1], expected)


def test_moving_pixels_inside_a_patch_changes_nothing():
    features = SpectralFeatures(BANDS, DEFAULT, (8, 8))
    image = images()
    patches = image.reshape(2, 12, 2, 8, 3, 8).permute(0, 1, 2, 4, 3, 5).reshape(2, 12, 2, 3, 64)
    shuffled = patches[..., torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    moved = shuffled.reshape(2, 12, 2, 3, 8, 8).permute(0, 1, 2, 4, 3, 5).reshape(2, 12, 16, 24)
    assert not torch.equal(moved, image)
    torch.testing.assert_close(features(moved), features(image), rtol=1e-5, atol=1e-6)


EDGES = st.one_of(
    st.sampled_from([0.0, 1.0, -0.03, -1e-6, 1e-8, 2.8, 1e4, float("nan"), float("inf"), float("-inf")]),
    st.floats(-0.0625, 1.5, width=32),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EDGES, min_size=48, max_size=48), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_everything_is_finite_forward_and_backward(values, constant, dtype):
    features = SpectralFeatures(BANDS, DEFAULT, (2, 2))
    image = torch.tensor(values).reshape(1, 12, 2, 2)
    if constant:
        image = image[..., :1, :1].expand(1, 12, 2, 2)
    image = image.to(dtype).clone().requires_grad_()
    output = features(image)
    output.sum().backward()
    assert output.dtype == torch.float32
    assert bool(output.isfinite().all())
    assert image.grad is not None
    assert bool(image.grad.isfinite().all())


@pytest.mark.parametrize("value", [0.0, 1.0, -0.02, 1e4, float("nan")])
def test_all_indices_are_finite_on_constant_images(value):
    features = SpectralFeatures(BANDS, select_indices(BANDS, "all").formulas, (2, 2))
    image = torch.full((1, 12, 2, 2), value, requires_grad=True)
    output = features(image)
    output.sum().backward()
    assert bool(output.isfinite().all())
    assert image.grad is not None
    assert bool(image.grad.isfinite().all())


def test_standardisation_and_where_nothing_is_valid():
    mean, std = [float(i) for i in range(12)], [0.5 + i for i in range(12)]
    image = images(channels=3)
    features = small(mean=mean, std=std)
    expected = (small().raw_statistics(image) - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(features(image), expected)
    image[0, :, :4, :8] = torch.nan
    assert not features(image)[0, 0].any()
    assert bool(features.raw_statistics(image)[0, 0].isnan().all())


def test_a_statistic_that_never_varied_is_only_centred():
    features = small(mean=[0.1] * 12, std=[0.0] * 12)
    torch.testing.assert_close(features(images(channels=3)), small()(images(channels=3)) - 0.1)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.0] * 12, [1.0] * 11 + [-1.0], "no usable statistics for 'std S2REP'"),
        ([float("nan")] + [0.0] * 11, [1.0] * 12, "no usable statistics for 'mean B'"),
    ],
)
def test_unusable_statistics_are_refused(mean, std, message):
    with pytest.raises(ConfigError, match=message):
        small(mean=mean, std=std)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(BandError, match="the images have 12 channels, but the bands are 'B', 'R', 'N'"):
        small()(images())
    message = (
        r"an image of 18 x 24 pixels is not a whole number of 4 x 8 patches: "
        r"resize or pad it to 20 x 24, or crop it to 16 x 24\."
    )
    with pytest.raises(DataError, match=message):
        small()(images(height=18, channels=3))


def test_autocast_and_low_precision_models_change_nothing():
    image = images(channels=3)
    mean, std = [0.3] * 12, [0.123456789] * 12
    features = small(mean=mean, std=std)
    expected = features(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features(image), expected)
    features.to(torch.bfloat16).half()
    assert features.feature_std.dtype == torch.float32
    assert torch.equal(features(image), expected)


def test_copies_and_meta_devices_keep_the_statistics():
    image = images(channels=3)
    with torch.device("meta"):
        features = small(mean=[0.3] * 12, std=[0.7] * 12)
    expected = small(mean=[0.3] * 12, std=[0.7] * 12)(image)
    assert torch.equal(features(image), expected)
    for other in (
        copy.deepcopy(features),
        pickle.loads(pickle.dumps(features)),
        features.to("meta").to_empty(device="cpu"),
    ):
        assert torch.equal(other(image), expected)
    assert not features.state_dict()


def test_compiled_as_one_graph_equals_eager():
    features = SpectralFeatures(["B", "R", "N"], {**SMALL, "root": "(N*R)**0.5"}, (4, 8))
    image = images(channels=3)
    image[0, 1, :3, :5] = torch.nan
    image[0, :, 4:8, 8:16] = float("inf")
    compiled = torch.compile(features, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), features(image))


def test_an_index_named_like_a_band_is_refused():
    with pytest.raises(ConfigError, match="'N' are names of bands and of indices at once"):
        SpectralFeatures(["R", "N"], {"N": "R"}, (4, 4))
