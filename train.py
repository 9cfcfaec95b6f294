"""Adapt a vision transformer to multispectral images: ``python train.py --help``, or ``deflect-train --help``."""

from deflect_hf.cli import train as main

if __name__ == "__main__":
    main()
