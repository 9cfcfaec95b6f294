"""Bands, sensors, spectral indices and the statistics of pixel sets."""
