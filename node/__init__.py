"""The volunteer's daemon: serves one span of one model. Knows nothing of clients' routes or of decoding."""
