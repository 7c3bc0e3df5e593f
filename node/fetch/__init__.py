"""How a node gets the model that its swarm serves from the nodes that have it. Knows no engine."""
