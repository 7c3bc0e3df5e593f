"""Streams between peers: one interface (`base`), two implementations (`memory`, `libp2p`).

Knows peer ids, addresses and bytes; knows nothing of models or sessions.
"""
