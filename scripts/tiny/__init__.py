"""The parts of ``train_tiny.py``: questions, tokenizer, conversations, training and scoring."""
