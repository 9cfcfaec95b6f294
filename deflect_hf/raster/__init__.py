"""Rasters in and out: the only room that imports rasterio."""
