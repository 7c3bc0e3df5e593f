"""Blocks of llama-like models in C, with the same bits on every processor (docs/numerics.md). No torch."""
