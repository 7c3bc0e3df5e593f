"""Every bound of the HTTP side, with the reason for the number. Those of the swarm stand in `protocol.limits`."""

from __future__ import annotations

from typing import Final

# -- connections: what somebody may hold who sends no sound request

# A browser opens six, a load generator some hundreds; each takes a file and 100 KiB at most.
CONNECTIONS: Final = 256
# Line and fields of a request. Browsers send 2 KiB; a token in Authorization rarely 4.
HEAD_BYTES: Final = 16 * 1024
# From the first byte of a connection, or of the next request on it, until its head is whole.
HEAD_S: Final = 10.0
# An idle connection is kept for the next request: longer than a client takes between two of one conversation.
KEEP_ALIVE_S: Final = 30
# The text of the longest context that models have, with room for JSON's escapes.
BODY_BYTES: Final = 4 * 1024 * 1024
BODY_S: Final = 30.0
# All bodies together: what many connections could send at once is sixteen times that.
BODIES_BYTES: Final = 64 * 1024 * 1024

# -- answers

# Answers that are computed at once: nodes put them in one batch, and give one peer 64 sessions.
PARALLEL: Final = 16
# Requests that wait for one of those to end; a second each is what a short answer takes.
QUEUED: Final = 32
# Who has waited this long is told so: proxies and clients give up after a minute.
QUEUED_S: Final = 60.0
# Answers to one request: each is a session at every hop.
CHOICES: Final = 8
# Prompts of one request to /v1/completions.
PROMPTS: Final = 16
# The longest answer where a request does not say; what is asked for may be longer.
NEW_TOKENS: Final = 2048
# Tokens whose logits are changed: each is asked for by name, at every token.
BIASES: Final = 1024
STOPS: Final = 16
STOP_CHARS: Final = 256
# Tools of one request: agents bring some tens, and each takes some hundred tokens of the prompt.
TOOLS: Final = 128
# A conversation has two messages a turn; templates take a time that grows with them.
MESSAGES: Final = 2048

# -- streams

# Pieces of an answer that are on their way from the swarm to a reader who is slow; then the answer waits for it.
PIECES_AHEAD: Final = 256
# A reader that takes nothing for so long has left without saying so; its places at the nodes are needed.
STALLED_S: Final = 30.0
# Proxies cut streams that are silent, many after 15 s or more.
PING_S: Final = 10.0
# How long the head of a stream's response waits for the first piece: errors up to then have a status of their own.
FIRST_PIECE_S: Final = 10.0

# -- idle sessions

# Each holds a seat at every hop, which gives way to whoever needs it.
IDLE_SESSIONS: Final = 8
# People read an answer and type the next question within this; a node keeps what it computed by itself as well.
IDLE_S: Final = 120.0
# Fewer tokens in common are prefilled as quickly as anything is taken over.
IDLE_TOKENS: Final = 32

# -- the swarm

# How soon another try follows where the swarm cannot be entered.
JOIN_EVERY_S: Final = 3.0
# How old a map may be that /health and /ready speak of.
MAP_S: Final = 15.0
# How often streams of state are told what has changed.
STATUS_S: Final = 2.0
# Streams of state at once: pages that are open, each takes one.
WATCHERS: Final = 32
# Events that a watcher may lag behind by before it loses some: sixteen answers tell of their tokens for two seconds.
EVENTS_AHEAD: Final = 256
# Of one answer: often enough to be seen to move, and a small part of what its tokens cost.
PROGRESS_S: Final = 0.15
# Events that are kept for who comes later: a page that is opened again shows what happened a while ago.
EVENTS_KEPT: Final = 50
