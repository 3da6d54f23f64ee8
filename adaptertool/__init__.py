"""Inspect and repair PEFT adapter checkpoints."""

__version__ = "0.1.0"
