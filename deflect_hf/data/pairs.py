"""Images and masks of a public release, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deflect_hf.data.dataset import Stored
from deflect_hf.data.folder_reader import FolderReader
from deflect_hf.data.public import PublicDataset
from deflect_hf.errors import BandError, DataError, listing


@dataclass(frozen=True)
class PairReader:
    """Reads the ``image`` and the ``mask`` of a row.

    Attributes:
        bands: Codes of the bands to read, in stored order.
    """

    public: PublicDataset
    bands: tuple[str, ...]

    def read(self, row: Mapping[str, Any]) -> Stored:
        """Read them.

        Raises:
            DataError: A file is damaged, has other bands than published, or the mask has another size.
        """
        sensor = self.public.sensor
        try:
            return FolderReader(self.bands, self.bands, None, sensor).read(row)
        except BandError as error:
            raise DataError(
                f"{row['image']} does not have the {len(sensor.bands)} bands of {self.public.title}, "
                f"{listing(sensor.codes)}: copy the file again."
            ) from error
