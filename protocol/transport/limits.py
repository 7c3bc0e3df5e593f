"""The transport's bounds, each with its reason. Sizes are in bytes."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# --- dialling -----------------------------------------------------------------------------------------------
# All addresses of a peer are tried at once and share this deadline. A QUIC handshake takes two round trips;
# one lost packet costs a retransmission after about 0.3 s, so 3 s covers a bad path and bounds a dead one.
DIAL_TIMEOUT_S = 3.0
# A place that a stranger named, where its peer was never met: one try of a second, of two datagrams (the second after
# twice this round trip). It may be a third party's, and what cannot answer in this time makes no good hop either.
HINT_DIAL_TIMEOUT_S = 1.0
HINT_ROUND_TRIP_S = 0.25
# A record names a handful of addresses (interfaces, a public one); more would let it make us spray packets.
MAX_DIAL_ADDRS = 16
# Peers dialled at once, the oldest attempt giving way: strangers name peers to dial, at 16 addresses each. If all are
# dead, 32 each 3 s begin 170 handshakes a second: 25 % of a core.
MAX_DIALS = 32
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
# Pieces received out of order in one stream. Losses leave at most one gap in two packets: 360 in a window of
# Ethernet packets. aioquic walks over all of them for each packet, so many are an attack.
MAX_STREAM_GAPS = 1024
# Unacknowledged and unsent bytes a stream accepts before `send` waits.
SEND_BUFFER = 512 * KIB

# --- the endpoint -------------------------------------------------------------------------------------------
# What the kernel may hold for us while Python is busy: 4 MiB is 3,000 Ethernet packets, about 50 ms of work.
SOCKET_BUFFER = 4 * MIB
# Datagrams taken from the socket before the first is answered: more makes batches better and waits longer.
RECEIVE_BATCH = 64
# Datagrams that wait because the kernel's buffer is full; beyond that they are lost, which QUIC repairs.
SEND_BACKLOG = 1024
# A connection costs 115 KiB of Python objects (measured) and keep-alives; 1,024 are 115 MiB. With all taken, one
# gives way: of those without a stream that anybody has found of use, while these are more than half.
MAX_CONNECTIONS = 1024
# A peer that restarts has a new connection before its old one times out; more than a few is an attack or a bug.
MAX_CONNECTIONS_PER_PEER = 4
# Unfinished handshakes, the oldest giving way: 29 MiB. At the rates below each has 1.8 s at least, in which an honest
# one, of two round trips, is through.
MAX_HANDSHAKES = 256
HANDSHAKE_TIMEOUT_S = 5.0
# A handshake costs about 3 ms of CPU: those of all begin at a rate that takes 36 % of a core, of one origin 24 %.
HANDSHAKES_PER_S = 120
ORIGIN_HANDSHAKES_PER_S = 80
# Those of an origin that begin though others use up what there is for all.
RESERVED_HANDSHAKES_PER_S = 4
RESERVED_HANDSHAKES_BURST = 8
# Who dials from one port of one address does so once for each connection; again a few times, where it is refused.
PORT_HANDSHAKES_PER_S = 4
PORT_HANDSHAKES_BURST = 16
# This many may begin without showing that they receive at the address they send from, which saves a round trip; then
# everybody has to.
UNPROVEN_HANDSHAKES_BURST = 32
UNPROVEN_HANDSHAKES_PER_S = 20
# Answers without a connection (prove your address, speak another version) cost 60 us each: 6 % of a core.
ANSWERS_PER_S = 1000
# An answer to who is not proven to be where it says is at most this many times what it answers (RFC 9000, section 8).
AMPLIFICATION = 3
# What TLS is told in each phase of a connection: a certificate with the largest keys takes 6 KiB. In the three
# of them, 120 MiB for all.
MAX_CRYPTO_BYTES = 32 * KIB
# Unread bytes, and streams, of a peer that was granted no session: it asks small things. Together 128 MiB of bytes,
# and with 4 KiB for a stream 64 MiB of objects.
STRANGER_WINDOW = 128 * KIB
STRANGER_STREAMS = 16
# Bytes held for all connections: arrived and not read, in order or not, and sent and not acknowledged. Beyond it
# connections end, until it is kept again. What strangers may send unread stays below it.
MAX_HELD_BYTES = 256 * MIB
# Counted each time this much has passed: as much more may be held between two counts.
COUNT_HELD_EVERY = 16 * MIB
# Incoming streams, of all connections, that no handler has found of use yet (most of them have said nothing); the
# oldest gives way. Each costs a task and 20 KiB, so 10 MiB; a stream that means something is through in milliseconds.
MAX_UNUSED_STREAMS = 512
# Streams a peer may open in one connection, at once and each second after: opening and resetting one costs 0.3 ms.
STREAMS_BURST = 256
STREAMS_PER_S = 200
# Connection ids of closed connections whose goodbye is said again if asked: 1.3 KiB each.
MAX_GOODBYES = 1024
GOODBYES = 5  # for one connection: one of them arrives, and nobody is flooded
# Streams that a peer with a session may have open at once; sessions, DHT queries and map exchanges stay far below.
MAX_INCOMING_STREAMS = 256
# A stream that was closed but whose last bytes the peer does not take is reset after this.
LINGER_TIMEOUT_S = 30.0
# While streams are open and nothing comes, the silence is probed after this, then after as long again each time,
# so that a killed process is noticed soon after it died and an idle connection costs next to nothing.
FIRST_PROBE_S = 0.25
# Reports that nobody listens at the peer's port, without a packet from it in between, before it counts as dead:
# one may be forged or belong to a restart of something else; PINGs provoke the next within this time.
REFUSALS_TO_DIE = 3
REFUSAL_PROBE_S = 0.03

# --- py-libp2p's host and the DHT ---------------------------------------------------------------------------
# Silence after which a stream of identify or Kademlia is given up: their messages are small and immediate.
HOST_STREAM_TIMEOUT_S = 10.0
# Bytes read of one stream of identify or ping; a long list of addresses and protocols takes 4 KiB.
HOST_STREAM_BYTES = 64 * KIB
# Peers that the host remembers, connected or not, the one heard of longest ago making room: with 16 addresses, and
# protocols and texts at these bounds, 32 KiB each, so 64 MiB.
HOST_MAX_PEERS = 2048
HOST_MAX_PROTOCOLS = 64
HOST_MAX_TEXT = 128
HOST_MAX_RECORD = 4 * KIB
# Protocols that an incoming stream may ask for before it is given up.
MAX_PROPOSALS_PER_STREAM = 4
# One question to one DHT node: an answer takes a round trip; a dead node behind a silent address costs this.
DHT_QUERY_TIMEOUT_S = 1.5
# One whole lookup. Kademlia needs log2(nodes) rounds at most; in 1,000 nodes five of 0.3 s each, and two that fail.
DHT_LOOKUP_TIMEOUT_S = 5.0
# Questions in flight in one lookup: a third of the nodes may be dead without a lookup waiting for them.
DHT_CONCURRENCY = 10
# Kademlia's k: nodes that hold a value, and answers that end a lookup (specification "Kademlia DHT").
DHT_REPLICAS = 20
# Answers with a value after which the newest of them is taken.
DHT_GET_QUORUM = 5
# A signed announcement is about 1 KiB; a node stores at most this many of them (64 MiB).
DHT_MAX_VALUE = 16 * KIB
DHT_MAX_VALUES = 4096
# Keys are at most 128 bytes for go-libp2p and py-libp2p alike.
DHT_MAX_KEY = 128
# Providers kept: per key as Kademlia's k says, and in all; of the origin that has most the oldest makes room. With
# all the addresses that they may have, 8 KiB each, so 64 MiB.
DHT_MAX_PROVIDERS = 8192
# An answer holds 20 closer nodes and 20 providers with their addresses: about 20 KiB.
DHT_MAX_MESSAGE = 256 * KIB
# DHT streams served at once, the oldest giving way, each with a message at most; an honest one takes a round trip.
DHT_MAX_INCOMING = 64
# Announcements of providers taken from one peer in 10 s; py-libp2p's 10 is less than a node with many models makes.
DHT_MAX_PROVIDES_PER_10_S = 100
# How long an address learnt from another node is tried.
DHT_ADDRESS_LIFE_S = 3600
