"""Spectral indices: which ones, and their formulas, from the installed spyndex catalogue.

The catalogue is only read here, when a configuration is made. What is chosen, names and formulas with all constants
put in, is stored with the adapter, which from then on does not depend on the spyndex version.

Source: D. Montero et al., "A standardized catalogue of spectral indices to advance the use of remote sensing in Earth
system research", Scientific Data 10, 197 (2023); https://github.com/awesome-spectral-indices/spyndex (MIT).
"""

from __future__ import annotations

import ast
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor

from deflect_hf.errors import IndexFormulaError, listing, nearest
from deflect_hf.spectral.bands import Unit
from deflect_hf.spectral.formulas import parse
from deflect_hf.spectral.probe import bound_of, has_additive_constant, same_feature, signature
from deflect_hf.spectral.selection import single_nir

logger = logging.getLogger(__name__)

# Narrow-range indices were preferred: they keep their meaning under other light and other sensors, and standardise
# well. No two are the same feature. Many names share one formula up to sign: NDWI is -GNDVI, NDBI is -NDMI, MNDWI is
# NDSI, NBR is -UI, NDTI is -NGRDI.
DEFAULT_INDICES: tuple[str, ...] = (
    *("NDVI", "EVI", "SAVI"),  # vegetation: the reference of all others, of dense canopies and haze, of bright soil
    *("NIRv", "PSRI"),  # photosynthesis; senescence, carotenoids against chlorophyll
    *("NDREI", "NDVI705", "NDCI"),  # chlorophyll by the red edge: of canopies, of leaves, of algae in turbid water
    *("NDWI", "MNDWI"),  # open water against vegetation, and against built-up land, which is also snow (NDSI)
    *("AWEInsh", "AWEIsh", "NDTI"),  # water with few shadows, with shadow and dark roofs; suspended sediment
    *("NBR", "NBR2", "BAIS2"),  # burnt area and severity, litter and tillage, char
    *("NDBI", "BLFEI"),  # built-up land, which with the sign turned is canopy water; against bare soil
    *("BI", "NDSoI"),  # bare soil: SWIR1 and red against near infrared and blue; mineral soil: SWIR2 against green
    *("S3", "SWI"),  # snow, also under vegetation, and against water and cloud
)


@dataclass(frozen=True)
class IndexSelection:
    """The indices to compute, with formulas over band codes and numbers only, and why others are not among them."""

    formulas: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


@functools.cache
def catalogue() -> Mapping[str, Any]:
    """The indices of the installed spyndex by name, each with ``formula``, ``bands`` and ``application_domain``."""
    import spyndex

    return MappingProxyType(dict(spyndex.indices))


@functools.cache
def _constants() -> Mapping[str, float | None]:
    import spyndex

    defaults = {name: constant.default for name, constant in spyndex.constants.items()}
    return MappingProxyType({name: None if value is None else float(value) for name, value in defaults.items()})


def domains() -> list[str]:
    """Return the application domains of the catalogue: each selects its indices."""
    return sorted({entry.application_domain for entry in catalogue().values()})


def select_indices(
    bands: Sequence[str], spec: str | Sequence[str] | None, unit: Unit = "reflectance"
) -> IndexSelection:
    """Choose the indices that ``bands`` allow.

    Args:
        bands: codes of the bands there are. A single near-infrared band serves formulas in N and in N2.
        spec: "default", "all", an application domain ("water"), an index name, or several of these; None for none.
        unit: on "8bit" values, indices with additive constants mean nothing and are left out.

    Returns:
        The formulas in the order asked for, and the reason for each index that was left out: a band is missing, a
        constant has no default, an additive constant on 8-bit values, values beyond all limits (an index made for
        temperatures in kelvins, say), or the same feature (up to shift and scale, which standardisation removes) is
        there already under another name.
    """
    selection = IndexSelection()
    named = {spec} if isinstance(spec, str) else set(spec or ())
    signatures: dict[str, Tensor] = {}
    for name in _expand(spec):
        try:
            formula, reason = _formula_for(name, bands, unit)
        except IndexFormulaError as error:
            if name in named:
                raise
            formula, reason = "", str(error)
        if not reason:
            mark = signature(formula)
            known = next((other for other, own in signatures.items() if same_feature(own, mark)), None)
            if known is None:
                selection.formulas[name], signatures[name] = formula, mark
                continue
            reason = f"the same feature as {known}"
        selection.left_out[name] = reason
    asked = {name: reason for name, reason in selection.left_out.items() if name in named}
    _log_left_out(bool(asked), "; ".join(f"{name}: {reason}" for name, reason in (asked or selection.left_out).items()))
    return selection


@functools.cache  # once per process: a run chooses for its statistics and for its adapter
def _log_left_out(asked: bool, reasons: str) -> None:
    if asked:
        logger.warning("spectral indices that were asked for by name are left out: %s", reasons)
    elif reasons:
        logger.info("spectral indices left out: %s", reasons)


def _expand(spec: str | Sequence[str] | None) -> list[str]:
    if not spec:
        return []
    # the well-known names first, so that duplicates are left out in their favour
    everything = [*DEFAULT_INDICES, *catalogue()]
    groups = {"default": [*DEFAULT_INDICES], "all": everything}
    for domain in domains():
        groups[domain] = [name for name in everything if catalogue()[name].application_domain == domain]
    names: list[str] = []
    for entry in [spec] if isinstance(spec, str) else spec:
        if entry not in catalogue() and entry not in groups:
            raise IndexFormulaError(
                f"{entry!r} is not a spectral index of the catalogue, nor one of the groups {listing(groups)}."
                f"{nearest(str(entry), [*groups, *catalogue()])}"
            )
        names += [entry] if entry in catalogue() else groups[entry]
    return list(dict.fromkeys(names))


def _formula_for(name: str, bands: Sequence[str], unit: Unit) -> tuple[str, str]:
    """Return an index's formula over ``bands`` and numbers, and why it cannot be had (empty if it can)."""
    entry = catalogue()[name]
    replacements: dict[str, ast.expr] = {}
    missing = []
    for symbol in entry.bands:
        constant, other_nir = _constants().get(symbol), single_nir(symbol, bands)
        if constant is not None:  # also where somebody calls a band L
            replacements[symbol] = ast.Constant(constant)
        elif other_nir:
            replacements[symbol] = ast.Name(other_nir, ast.Load())
        elif symbol not in bands or symbol in _constants():
            missing.append(symbol)
    if missing:
        constants = [symbol for symbol in missing if symbol in _constants()]
        if constants:
            return "", f"the catalogue has no value for the constant(s) {listing(sorted(constants))}"
        return "", f"needs the band(s) {listing(sorted(missing))}"
    formula = ast.unparse(_Replace(replacements).visit(ast.parse(entry.formula, mode="eval")))
    parse(formula, bands)
    if unit == "8bit" and has_additive_constant(formula):
        return "", "its additive constants have no meaning on 8-bit values"
    bound_of(formula)
    return formula, ""


class _Replace(ast.NodeTransformer):
    def __init__(self, replacements: Mapping[str, ast.expr]) -> None:
        self.replacements = replacements

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.replacements.get(node.id, node)
