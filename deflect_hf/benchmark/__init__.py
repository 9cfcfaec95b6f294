"""Benchmarks: what a method reaches (`accuracy`), what it costs (`cost`), and each published encoder (`encoders`)."""
