"""Loads one span of a checkpoint and runs it with transformers' own modules. Knows nothing of sessions or peers."""
