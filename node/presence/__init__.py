"""The node's place in the swarm: what it announces, what it heard, and the small files it hands out."""
