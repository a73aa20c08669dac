"""The demonstration: real handwriting that drifts, generated from prompts and judged by a network that never saw it.

:mod:`~tubelet.demo.digits` is the world, :mod:`~tubelet.demo.judge` the judge, :mod:`~tubelet.demo.metrics` and
:mod:`~tubelet.demo.reconstruction` the numbers and :mod:`~tubelet.demo.pictures` the pictures.
"""
