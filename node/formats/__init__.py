"""Checkpoints whose weights are kept in few bits, read as the plain tensors that they stand for."""
