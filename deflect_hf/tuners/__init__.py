"""PEFT tuners of deflect_hf, and their registration with PEFT."""

from deflect_hf.tuners.registration import check_versions

check_versions()  # before anything is imported of PEFT that older releases lack
