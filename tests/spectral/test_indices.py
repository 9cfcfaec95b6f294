import sys
from importlib import import_module

import numpy as np
import pytest
import spyndex
import torch

from deflect_hf.errors import IndexFormulaError
from deflect_hf.spectral.features import SpectralFeatures
from deflect_hf.spectral.formulas import compile_program
from deflect_hf.spectral.indices import (
    DEFAULT_INDICES,
    IndexSelection,
    _log_left_out,
    catalogue,
    domains,
    select_indices,
)
from deflect_hf.spectral.probe import bound_of

SENTINEL2 = ["A", "B", "G", "R", "RE1", "RE2", "RE3", "N", "N2", "WV", "S1", "S2"]
SIX = ["B", "G", "R", "N", "S1", "S2"]
CONSTANTS = {name: item.default for name, item in spyndex.constants.items() if item.default is not None}
COMPUTABLE = [name for name, entry in catalogue().items() if set(entry.bands) <= {*SENTINEL2, *CONSTANTS}]


def spectra() -> dict[str, np.ndarray]:
    """Plausible and implausible reflectances: dark, bright, slightly negative."""
    generator = np.random.default_rng(0)
    brightness = generator.uniform(0.01, 0.8, 4000)
    samples = {band: brightness * generator.uniform(0.3, 1.8, 4000) for band in SENTINEL2}
    return {band: np.concatenate([values, generator.uniform(-0.03, 1.6, 1000)]) for band, values in samples.items()}


def test_every_index_equals_the_catalogue_inside_its_bound():
    assert len(COMPUTABLE) >= 198
    samples = spectra()
    tensors = [torch.from_numpy(values) for values in samples.values()]
    for name in COMPUTABLE:
        with np.errstate(all="ignore"):
            expected = np.asarray(spyndex.computeIndex(name, params={**samples, **CONSTANTS}), dtype=np.float64)
        formula = select_indices(SENTINEL2, name).formulas[name]
        (computed,) = compile_program([formula], SENTINEL2, [bound_of(formula)]).values(tensors)
        computed = computed.numpy()
        inside = np.isfinite(expected) & (np.abs(expected) <= bound_of(formula))
        assert inside.mean() > 0.5, name
        np.testing.assert_allclose(computed[inside], expected[inside], rtol=1e-6, atol=1e-6, err_msg=name)
        assert np.abs(computed).max() <= bound_of(formula), name  # false for NaN


def test_the_default_set_covers_all_domains_without_duplicates():
    selection = select_indices(SENTINEL2, "default")
    assert tuple(selection.formulas) == DEFAULT_INDICES
    assert 16 <= len(DEFAULT_INDICES) <= 24
    assert {"vegetation", "water", "burn", "urban", "soil", "snow"} <= {
        catalogue()[name].application_domain for name in DEFAULT_INDICES
    }
    assert selection.left_out == {}


def test_the_same_feature_is_offered_once():
    selection = select_indices(SENTINEL2, ["NDVI", "RNDVI", "IPVI", "NDMI", "NDII", "NDBI", "CIG", "GRVI", "DVI"])
    assert list(selection.formulas) == ["NDVI", "NDMI", "CIG", "DVI"]
    assert selection.left_out == {
        "RNDVI": "the same feature as NDVI",  # the sign turned
        "IPVI": "the same feature as NDVI",  # (NDVI + 1) / 2
        "NDII": "the same feature as NDMI",
        "NDBI": "the same feature as NDMI",
        "GRVI": "the same feature as CIG",  # CIG + 1
    }


def test_all_prefers_the_names_of_the_default_set():
    selection = select_indices(SENTINEL2, "all")
    assert tuple(selection.formulas)[: len(DEFAULT_INDICES)] == DEFAULT_INDICES
    assert set(selection.formulas) | set(selection.left_out) == set(catalogue())
    assert len(selection.formulas) > 170


def test_missing_bands_and_constants_are_named():
    selection = select_indices(SIX, ["NDVI", "NDREI", "FAI", "DpRVIVV"])
    assert selection == IndexSelection(
        {"NDVI": "(N - R) / (N + R)"},
        {
            "NDREI": "needs the band(s) 'RE1'",
            "FAI": "the catalogue has no value for the constant(s) 'lambdaN', 'lambdaR', 'lambdaS1'",
            "DpRVIVV": "needs the band(s) 'VH', 'VV'",
        },
    )


def test_constants_get_their_catalogue_value():
    assert select_indices(SIX, "EVI").formulas == {"EVI": "2.5 * (N - R) / (N + 6.0 * R - 7.5 * B + 1.0)"}


def test_a_band_with_the_name_of_a_constant_does_not_take_its_place():
    selection = select_indices(["R", "N", "L", "lambdaN"], ["SAVI", "FAI"])
    assert selection.formulas == {"SAVI": "(1.0 + 1.0) * (N - R) / (N + R + 1.0)"}
    assert "lambdaN" in selection.left_out["FAI"]


def test_a_single_near_infrared_band_serves_both_codes():
    assert select_indices(["R", "N2"], "NDVI").formulas == {"NDVI": "(N2 - R) / (N2 + R)"}
    assert select_indices(["R", "N"], "AshburnVI").formulas == {"AshburnVI": "2.0 * N - R"}
    assert select_indices(["R", "N", "N2"], "AshburnVI").formulas == {"AshburnVI": "2.0 * N2 - R"}


def test_an_index_without_limits_is_left_out():
    selection = select_indices([*SIX, "T"], "burn")
    assert "exceed" in selection.left_out["CSIT"] and "NBR" in selection.formulas
    with pytest.raises(IndexFormulaError, match="exceed"):  # asked for by its own name: not left out behind one's back
        select_indices([*SIX, "T"], ["NDVI", "CSIT"])
    assert "CSI" in selection.formulas
    assert all(bound_of(formula) <= 1e6 for formula in selection.formulas.values())


def test_8bit_values_get_no_index_with_additive_constants():
    selection = select_indices(["R", "G", "B", "N"], ["NDVI", "EVI", "SAVI", "DVI"], unit="8bit")
    assert list(selection.formulas) == ["NDVI", "DVI"]
    assert set(selection.left_out.values()) == {"its additive constants have no meaning on 8-bit values"}


@pytest.mark.parametrize(
    ("spec", "told"), [(["NDVI", "NDMI"], True), ("NDMI", True), (["NDVI"], False), ("all", False)]
)
def test_an_index_that_was_asked_for_and_cannot_be_had_is_told(spec, told, caplog):
    _log_left_out.cache_clear()
    for _ in range(2):
        select_indices(["B", "G", "R", "N"], spec)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == told and all("by name are left out: NDMI: needs the band(s) 'S1'" in one for one in warned)


def test_selection_by_domain_and_none():
    water = select_indices(SENTINEL2, "water").formulas
    assert {"NDWI", "MNDWI", "AWEIsh"} <= set(water)
    assert all(catalogue()[name].application_domain == "water" for name in water)
    assert select_indices(SENTINEL2, None) == select_indices(SENTINEL2, []) == IndexSelection()
    assert set(select_indices(SENTINEL2, ["snow", "NDVI"]).formulas) >= {"NDSI", "S3", "NDVI"}
    assert "snow" in domains()


def test_an_unknown_index_is_refused_with_the_nearest():
    with pytest.raises(IndexFormulaError, match=r"'NDVII' is not a spectral index.*Did you mean 'NDVI'\?"):
        select_indices(SIX, ["NDVII"])
    with pytest.raises(IndexFormulaError, match=r"groups 'default', 'all', 'burn'.*Did you mean 'water'\?"):
        select_indices(SIX, "watr")


def test_frozen_formulas_need_no_catalogue(monkeypatch):
    monkeypatch.setitem(sys.modules, "spyndex", None)  # importing it now fails
    with pytest.raises(ImportError):
        import_module("spyndex")
    features = SpectralFeatures(["N", "R"], {"NDVI": "(N-R)/(N+R)"}, (4, 4))
    assert features(torch.full((1, 2, 4, 4), 0.2))[0, 0].tolist() == pytest.approx([0.2, 0.2, 0, 0, 0, 0], abs=1e-6)
