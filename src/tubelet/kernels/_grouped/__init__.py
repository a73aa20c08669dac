"""Attention of groups that are affine in raster order, each read where it lies."""
