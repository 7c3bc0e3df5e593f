"""The transport's bounds, each with its reason. Sizes are in bytes."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# --- dialling -----------------------------------------------------------------------------------------------
# All addresses of a peer are tried at once and share this deadline. A QUIC handshake takes two round trips;
# one lost packet costs a retransmission after about 0.3 s, so 3 s covers a bad path and bounds a dead one.
DIAL_TIMEOUT_S = 3.0
# A record names a handful of addresses (interfaces, a public one); more would let it make us spray packets.
MAX_DIAL_ADDRS = 16
# An answer to the first flight of a stream (a refusal, or the first data) takes one round trip and whatever
# the handler takes to begin; the protocol name itself is answered by the host at once.
NEGOTIATION_TIMEOUT_S = 10.0

# --- life of a connection -----------------------------------------------------------------------------------
# A silent peer is given up after this; keep-alives go out three times as often, so two may be lost.
IDLE_TIMEOUT_S = 30.0
KEEPALIVES_PER_IDLE_TIMEOUT = 3

# --- flow control -------------------------------------------------------------------------------------------
# Unread bytes per stream. 1 MiB holds a prefill chunk of 64 tokens x 8,192 x bf16 and, at 40 ms round trip,
# allows 25 MiB/s, more than the endpoint's packet processing reaches.
STREAM_WINDOW = 1 * MIB
# Unread bytes of all streams of one connection: four streams may stall without holding up a fifth.
CONNECTION_WINDOW = 5 * MIB
# Unacknowledged and unsent bytes a stream accepts before `send` waits.
SEND_BUFFER = 512 * KIB
