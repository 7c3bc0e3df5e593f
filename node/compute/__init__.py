"""What computes, when, and on how much memory: the engine's interface, its one thread, its scheduler."""
