"""Attention backends, one file each; :mod:`tubelet.attention.dispatch` holds their order."""
