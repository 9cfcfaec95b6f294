"""Maintainers' measurements: `python -m tests.benchmarks NAME ...`, see `--help`."""

from deflect_hf.benchmark.__main__ import main

if __name__ == "__main__":
    main(
        package="tests.benchmarks",
        commands=(
            "adapters",
            "encoders",
            "export",
            "loader",
            "peers",
            "processes",
            "resume",
            "scenes",
            "startup",
            "step",
        ),
    )
