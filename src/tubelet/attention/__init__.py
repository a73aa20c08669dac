"""Attention: patterns as values, one contract (``attend``), backends that say what they can, and plain modules."""

from tubelet.attention.dispatch import attend, backends, explain
from tubelet.attention.modules import Attention, CrossAttention
from tubelet.attention.patterns import Joint

__all__ = ["Attention", "CrossAttention", "Joint", "attend", "backends", "explain"]
