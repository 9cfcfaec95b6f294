"""Benchmarks: what a method reaches (`accuracy`), what it costs (`cost`), each encoder (`encoders`), and more.

`python -m deflect_hf.benchmark` names them all; each has a `--help` of its own.
"""
