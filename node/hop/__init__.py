"""Sessions on this node: who has a seat, what each step does, and where its result goes. Knows no torch."""
