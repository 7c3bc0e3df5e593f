"""What crosses the wire between peers, and nothing that computes.

Knows no socket (outside `protocol.transport`), no torch, no model code.
"""
