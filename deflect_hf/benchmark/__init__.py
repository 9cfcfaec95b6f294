"""Benchmarks: what a method reaches (`accuracy`) and what it costs (`cost`), as ratios from one run."""
