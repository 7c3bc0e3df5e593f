"""Helpers for tests: waits and real processes. Knows nothing of the packages under test."""
