"""Our QUIC endpoint: aioquic's state machine for one connection, trio, and one UDP port for everything.

Speaks libp2p's quic-v1 (ALPN, certificates, verified peers) and hands out streams; knows no multistream
negotiation, no DHT and no py-libp2p.
"""
