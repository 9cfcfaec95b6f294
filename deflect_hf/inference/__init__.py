"""Prediction with a trained folder: chips, streamed scenes.

Nothing is imported here: reading the arguments alone needs neither torch nor rasterio.
"""
