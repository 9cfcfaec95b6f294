"""Maintainers' measurements: `python -m tests.benchmarks adapters|encoders|loader|resume|scenes|startup|step ...`."""

from deflect_hf.benchmark.__main__ import main

if __name__ == "__main__":
    main(package="tests.benchmarks", commands=("adapters", "encoders", "loader", "resume", "scenes", "startup", "step"))
