"""Attention of tiles: lines and boxes of tokens with the lines and boxes that they attend, in one launch."""
