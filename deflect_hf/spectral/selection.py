"""Channels are picked by band name, never by position: resolve, select, and normalise the base bands."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from deflect_hf.errors import BandError, listing, nearest
from deflect_hf.spectral.bands import (
    BAND_CODES,
    SINGLE_NIR,
    Sensor,
    is_band_number,
    refuse_duplicates,
    refuse_numbers,
    resolve_among,
    split_date,
    standard_band,
)

logger = logging.getLogger(__name__)


def resolve_bands(names: Sequence[str], sensor: Sensor | None = None, *, settled: bool = False) -> list[str]:
    """Return the spyndex codes of ``names``, in the same order.

    Without a sensor only codes and common names ("red", "swir1") are known: band numbers mean different bands on
    different sensors. ``N@1`` is band N of the first further date of a scene.

    Args:
        settled: the names were resolved once, perhaps by a sensor with codes of its own, such as ``VV``: capitals that
            are like no code of the catalogue stay as they are.

    Raises:
        BandError: a name is unknown (the message gives the nearest one), or a band is given twice.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        single = "the single string " if isinstance(names, str) else ""
        raise BandError(f"the bands must be a list of names, not {single}{names!r:.80}.")
    names = list(names)  # read more than once
    refuse_numbers(names)
    if sensor is not None:
        codes = [sensor.resolve(plain).code + date for plain, date in map(split_date, names)]
        refuse_duplicates(codes, f"bands of sensor {sensor.name!r}", names)
        return codes
    known = tuple(standard_band(code) for code in BAND_CODES)
    codes = []
    for name, date in map(split_date, names):
        if is_band_number(name):
            raise BandError(f"band number {name!r} needs a sensor: it is another band on another sensor.")
        own = bool(re.fullmatch(r"W\d{3,5}", name))  # made from a wavelength: W1034 for a band at 1034 nm
        own = own or (settled and bool(re.fullmatch(r"[A-Z][A-Z0-9_]+", name)) and not nearest(name, BAND_CODES))
        codes.append((name if own else resolve_among(name, known, "the spyndex catalogue").code) + date)
    refuse_duplicates(codes, "bands", names)
    return codes


def band_or_none(name: str, sensor: Sensor | None = None) -> str | None:
    """The code of a band as :func:`resolve_bands` gives it, None for a name that is none."""
    try:
        return resolve_bands([name], sensor)[0]
    except BandError:
        return None


@functools.cache  # once per pair and process, as transformers' warning_once
def _log_single_nir(wanted: str, present: str) -> None:
    logger.info("the images have one near-infrared band, %s: it is used where %s is asked for", present, wanted)


def single_nir(wanted: str, available: Iterable[str]) -> str | None:
    """Return the near-infrared band that stands in for ``wanted``, or None if there is no need or no such band."""
    plain, date = split_date(wanted)
    present = SINGLE_NIR.get(plain, "") + date
    available = set(available)
    if plain not in SINGLE_NIR or wanted in available or present not in available:
        return None
    _log_single_nir(wanted, present)
    return present


def match_bands(
    available: Sequence[str], wanted: Sequence[str], needed: Sequence[str], where: str = ""
) -> list[int | None]:
    """Return the position in ``available`` of each band of ``wanted``, None for one that is missing; all are codes.

    Where the images have a single near-infrared band (N or N2), it also answers to the other code, once. Complaints
    begin with ``where``, the name of a file for example.
    """
    available, told = list(available), f"{where}: " if where else ""
    refuse_duplicates(available, f"{told}bands of the images")
    refuse_duplicates(wanted, f"{told}wanted bands")
    spare = [code for code in available if code not in wanted]
    found = {code: code if code in available else single_nir(code, spare) for code in wanted}
    missing = [code for code in needed if found.get(code) is None]
    if missing:
        hint = nearest(missing[0], available)
        if split_date(missing[0])[1]:
            hint = " Bands with @ are of further dates of the same place: give their files, `dates`."
        raise BandError(
            f"{told}the images lack the band(s) {listing(missing)}; they have {listing(available)}."
            f"{hint} Give images with these bands, or choose among the bands there are (a "
            "model that is trained already can do without a band only if it was trained with band_dropout)."
        )
    return [None if source is None else available.index(source) for source in found.values()]


def select_bands(available: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """As :func:`match_bands`, with every wanted band needed."""
    return [position for position in match_bands(available, wanted, needed=wanted) if position is not None]


def normalise_base_bands(
    pixel_values: Tensor, positions: Sequence[int], mean: Sequence[float] | None, std: Sequence[float] | None
) -> Tensor:
    """(B, C, H, W) reflectance -> (B, len(positions), H, W) normalised for the frozen base model.

    The only normalisation there is. A value that is not finite (nodata) becomes 0, which after normalisation is the
    base mean. Without ``mean`` and ``std`` the finite values come back bit for bit.
    """
    whole = list(positions) == list(range(pixel_values.shape[1]))
    if mean is None or std is None:
        chosen = pixel_values if whole else torch.stack([pixel_values[:, p] for p in positions], dim=1)
    else:
        # channel by channel with plain numbers: no copy of a list to the device at each step
        planes = [(pixel_values[:, p].float() - m) / s for p, m, s in zip(positions, mean, std, strict=True)]
        chosen = torch.stack(planes, dim=1).to(pixel_values.dtype)
    return torch.where(torch.isfinite(chosen), chosen, 0.0)
