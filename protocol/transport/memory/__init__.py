"""The transport in memory, for simulations: peers, latency, loss, cuts and deaths under a virtual clock.

Knows no socket and no libp2p; `network.Network` is the way in.
"""

from protocol.transport.memory.network import Network

__all__ = ["Network"]
