"""Evaluate a trained model, or predict maps with it: ``python evaluate.py --help``, or ``deflect-evaluate --help``."""

from deflect_hf.cli import evaluate as main

if __name__ == "__main__":
    main()
