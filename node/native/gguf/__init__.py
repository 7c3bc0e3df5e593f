"""Models in single files as llama.cpp keeps them, read as if they were checkpoints of transformers."""
