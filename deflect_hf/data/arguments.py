"""The former place of the data set's configuration, for scripts that import it from here."""

from deflect_hf.config.data import AugmentationArguments, DatasetArguments

__all__ = ["AugmentationArguments", "DatasetArguments"]
