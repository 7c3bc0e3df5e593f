"""Every bound on what a peer may make us hold, do or wait for, with the reason for the number."""

from __future__ import annotations

from typing import Final

MIB: Final = 1024 * 1024

# A prefill chunk of 512 tokens at hidden size 16,384 in fp32 is 32 MiB; twice that leaves room for headers.
FRAME_BYTES: Final = 64 * MIB
# Maps, manifests and files of models.
CONTROL_FRAME_BYTES: Final = 4 * MIB
# What a session stream begins with: `open` with a next hop takes 300 bytes, an `error` with its text 1,200.
FIRST_FRAME_BYTES: Final = 4096
# A request for the map brings the newest announcements that the asker knows, about 1 KiB each; the rest goes round.
MAP_REQUEST_BYTES: Final = 256 * 1024
# A request for the manifest or for a file holds a digest or a name.
FILE_REQUEST_BYTES: Final = 4 * 1024

# Sequence lengths above a million are beyond every model served today.
SESSION_TOKENS: Final = 1 << 20
# Tokens in one step: bounds the activation memory of one call into the engine.
STEP_TOKENS: Final = 512
# Positions and step numbers: steps outnumber tokens where drafts are rejected, a thousandfold is plenty.
STEP_NUMBER: Final = 1 << 31
# Steps a client may have on the way through one hop (pipelined prefill chunks and drafts).
STEPS_IN_FLIGHT: Final = 64
# Sequences that a session holds side by side: 32 beams, the one they came from, and as many again that make room.
LANES: Final = 64
# Candidates a hop keeps so that it can answer a repeated step; streams are reliable, so hardly anybody repeats one.
# Hidden states can come again from the journal.
OUTPUTS_KEPT: Final = 8
# Answers that a session may wait to send: those of decoding are of a few KiB. A row of the whole vocabulary, where
# that is more, always goes.
ANSWER_BYTES: Final = 256 * 1024
# Rows that a session may have waiting to be computed and sent on: the 4,096 that a client has out of a long prompt,
# up to hidden size 8,192 in 16 bits. At least two whole steps, so that one is computed while the next arrives.
WAITING_BYTES: Final = 64 * MIB

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
# Keys of one map; an announcement has 21.
MAP_KEYS: Final = 32
PEER_ID_BYTES: Final = 64
ADDRESSES: Final = 16
ADDRESS_BYTES: Final = 256
# Links to neighbours with their round-trip times, in one announcement.
LINKS: Final = 16

# An announcement with every field at its limit takes 16,572 bytes: addresses 16 x 259, digests 1024 x 10,
# links 16 x 88, and the rest.
RECORD_BYTES: Final = 17 * 1024
# Announcements in one map; 4,096 nodes of 1 KiB make 4 MiB, the size of a control frame.
MAP_RECORDS: Final = 4096
# Their bytes in a map: what a control frame holds, less our own record and its head.
MAP_BYTES: Final = CONTROL_FRAME_BYTES - RECORD_BYTES - 1024
# Announcements a peer may make us hold altogether: as many as a map holds of peers that were met, and of strangers.
KNOWN_RECORDS: Final = 8192

# How long an announcement lives; refreshed at a third of it. None may live longer, and no reader believes one for
# longer after it has heard it first, whatever it says of its own time.
RECORD_LIFE_S: Final = 60.0
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

# Weights cross the wire in parcels: one that turns out wrong, or comes too late, costs no more than this. Its hash
# takes 32 bytes.
PARCEL_BYTES: Final = MIB
# Of one stage: a layer of DeepSeek-V3 in fp8 has 1,556 tensors and 11,000 parcels, the embedding of 262,144 tokens in
# 16 bits and hidden size 8,192 has 4,096.
STAGE_TENSORS: Final = 16_384
STAGE_PARCELS: Final = 65_536
TENSOR_NAME_BYTES: Final = 256
TENSOR_DIMENSIONS: Final = 8
# The list of these: the layer of DeepSeek-V3 takes 500 KiB.
INVENTORY_BYTES: Final = CONTROL_FRAME_BYTES - 1024
# A request for it, or for a parcel, holds a digest.
WEIGHTS_REQUEST_BYTES: Final = 256
# A parcel that comes slower than this, from whoever else has it, is given up: after 16 s.
PARCEL_BYTES_PER_S: Final = 64 * 1024
# Requests of one peer that are unanswered: the small tensors of a stage go by dozens in what is on its way at once.
PARCELS_ASKED: Final = 64

# Sessions one node keeps, and those that one peer may open on it.
SESSIONS: Final = 256
SESSIONS_PER_PEER: Final = 64
# What all sessions of a node may have in motion: frames, steps that wait, answers. A session of a small model takes 3
# MiB, one of hidden size 4,096 takes 90; a node with more memory allows an eighth of it, within bounds.
BUFFER_BYTES_LEAST: Final = 512 * MIB
BUFFER_BYTES_MOST: Final = 8192 * MIB
# Sessions that one peer may open: a client that mends opens one for each of its hops, a few times at once, and one
# that serves many users opens as many as it may have, then anew what each of its users asks in eight seconds.
OPENS_PER_S: Final = 8.0
OPENS_BURST: Final = 64
# Those of one origin together: sixteen peers that open as fast as they may. Whoever invents identities opens no
# faster.
ORIGIN_OPENS_PER_S: Final = 128.0
ORIGIN_OPENS_BURST: Final = 256
# Sessions that begin with what another of the same peer has, as beams do with each token: nothing is computed for
# them, and at most copied, for which each FORK_TOKENS of them count as one more. One takes a node's event loop about
# a millisecond, as a step does.
FORKS_PER_S: Final = 64.0
FORKS_BURST: Final = 128
FORK_TOKENS: Final = 1024
# The steps that a fork comes after may still be on their way when it is asked for.
FORK_WAIT_S: Final = 2.0
# Streams that have not said what they want; each takes a task and a frame.
NEWCOMERS: Final = 256
# Links that one client may have us open, one origin twice that; each failing hop costs one, each session opened too.
LINKS_PER_S: Final = 4.0
LINKS_BURST: Final = 32
# A session is told to turn elsewhere when a hop behind it fails: more often than this is no mending.
RELINKS_PER_S: Final = 1.0
RELINKS_BURST: Final = 16
# What a session may have sent again, in whole journals: some at once, for failures come together, then one in this
# time.
REPLAYS_BURST: Final = 4
REPLAY_EVERY_S: Final = 60.0

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
# A client or a next hop that has not taken a message after this long is gone: the largest frame, 16 MiB at hidden
# size 8,192, asks for 280 KiB/s.
TAKE_WITHIN_S: Final = 60.0
# Saying why, to a peer that may not be reading.
GOODBYE_TIMEOUT_S: Final = 1.0
# A client that has sent nothing for this long, not even a ping, is gone.
SESSION_IDLE_S: Final = 900.0
