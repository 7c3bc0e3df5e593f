"""Every bound on what a peer may make us hold, do or wait for, with the reason for the number."""

from __future__ import annotations

from typing import Final

MIB: Final = 1024 * 1024

# A prefill chunk of 512 tokens at hidden size 16,384 in fp32 is 32 MiB; twice that leaves room for headers.
FRAME_BYTES: Final = 64 * MIB
# Maps, manifests and refusals are small; a peer that has not opened a session cannot make us hold more.
CONTROL_FRAME_BYTES: Final = 4 * MIB

# Sequence lengths above a million are beyond every model served today.
SESSION_TOKENS: Final = 1 << 20
# Tokens in one step: bounds the activation memory of one call into the engine.
STEP_TOKENS: Final = 512
# Positions and step numbers: steps outnumber tokens where drafts are rejected, a thousandfold is plenty.
STEP_NUMBER: Final = 1 << 31
# Steps a client may have on the way through one hop (pipelined prefill chunks and drafts).
STEPS_IN_FLIGHT: Final = 64
# Outputs a hop keeps so that it can answer a repeated step.
OUTPUTS_KEPT: Final = STEPS_IN_FLIGHT

# Deepest published models have 126 blocks; ten times that bounds loops over stages.
STAGES: Final = 1024
HIDDEN_SIZE: Final = 65_536
# Largest vocabularies today are 262,144.
VOCABULARY: Final = 1 << 20
# Ids whose logits a sampler asks for by name (penalty windows).
ASKED_IDS: Final = 4096

TEXT_BYTES: Final = 1024
# What is shown of them, in cells of a terminal. A name on the hub has at most 96 characters; a reason is a sentence
# or two; a line of ours may quote several reasons, a path or a command.
NAME_CELLS: Final = 128
SAID_CELLS: Final = 400
LINE_CELLS: Final = 4000
# Marks on one letter: Vietnamese has two, pointed Hebrew three or four; more only climb over the lines above.
MARKS: Final = 4
# Lists and maps in one frame, record or manifest; the fullest, an announcement with 16 links, has 21. Without
# this bound a frame of empty lists becomes seventy times its size in memory.
CONTAINERS: Final = 64
# Keys of one map; an announcement has 19.
MAP_KEYS: Final = 32
PEER_ID_BYTES: Final = 64
ADDRESSES: Final = 16
ADDRESS_BYTES: Final = 256
# Links to neighbours with their round-trip times, in one announcement.
LINKS: Final = 16

# An announcement with every field at its limit takes 16,546 bytes: addresses 16 x 259, digests 1024 x 10,
# links 16 x 88, and the rest.
RECORD_BYTES: Final = 17 * 1024
# Announcements in one map; 4,096 nodes of 1 KiB make 4 MiB, the size of a control frame.
MAP_RECORDS: Final = 4096
# Announcements a peer may make us hold altogether.
KNOWN_RECORDS: Final = 8192

# How long an announcement lives; refreshed at a third of it.
RECORD_LIFE_S: Final = 60.0
RECORD_LIFE_MAX_S: Final = 120.0  # what lives longer would push honest records out of a full book
# Clocks of honest peers differ; those further ahead are refused.
CLOCK_SKEW_S: Final = 120.0

# Config, tokenizer and chat template; the largest tokenizer.json in use is 33 MB.
MODEL_FILE_BYTES: Final = 64 * MIB
MODEL_FILES: Final = 16
FILE_NAME_BYTES: Final = 128
MODEL_FILES_BYTES: Final = 128 * MIB
FILE_CHUNK_BYTES: Final = 256 * 1024
# A file that comes slower than this is given up: such a link could not carry hidden states either.
FILE_BYTES_PER_S: Final = 64 * 1024

# Sessions one node keeps, and those that one peer may open on it.
SESSIONS: Final = 256
SESSIONS_PER_PEER: Final = 64

# A stream that opens and then says nothing.
FIRST_MESSAGE_TIMEOUT_S: Final = 10.0
# A map, a manifest or a chunk of a file from a living peer.
CONTROL_TIMEOUT_S: Final = 5.0
# A session to open at a living, reachable node: no weights are read and nothing is computed for it.
OPEN_TIMEOUT_S: Final = 2.5
# One hop's stream to the next, before the client is asked to bridge.
LINK_TIMEOUT_S: Final = 3.0
# Acks of steps that went on to the next hop wait this long for each other: the client needs them to find failures, in
# seconds, not to go on; a packet for each would take processors from whoever computes next.
ACK_DELAY_S: Final = 0.1
# A hop's stream to the next may arrive before the client's does; so many such streams wait, so long.
ATTACH_WAIT_S: Final = 2.0
ATTACH_WAITERS: Final = 64
# Saying why, to a peer that may not be reading.
GOODBYE_TIMEOUT_S: Final = 1.0
# A client that has sent nothing for this long, not even a ping, is gone.
SESSION_IDLE_S: Final = 900.0
