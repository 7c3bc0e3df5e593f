"""Text and tokens: what strangers' files make of them, in a process of its own. Knows no hop and no route."""
