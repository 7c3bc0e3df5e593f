"""Prompts of the tests with whole swarms, as token ids."""

SHORT = [(11 * i + 5) % 256 for i in range(24)]
LONG = [(7 * i * i + 3 * i + 1) % 256 for i in range(1000)]  # a second of computing, in eight chunks
