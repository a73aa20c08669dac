"""What grouped and tiled attention share."""
