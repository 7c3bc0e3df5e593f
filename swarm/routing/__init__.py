"""Who is in the swarm, whose word counts, and the way a token takes. Opens no session."""
