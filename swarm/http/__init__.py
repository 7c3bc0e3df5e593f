"""The HTTP side of a client: `swarm serve`. Speaks OpenAI's API and others'; knows no terminal and no node."""
