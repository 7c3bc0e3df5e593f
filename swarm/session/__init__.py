"""One sequence along a route: its steps, its hops, and the mending of what breaks. Knows no tokenizer and no text."""
