"""Models fetched from peers, on this machine's disk. Knows no peers: what is put here counts by its hashes alone."""
