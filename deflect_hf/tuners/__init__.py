"""PEFT tuners of deflect_hf, one package per method, and their registration with PEFT."""
