"""The modular sequence classifier: batch, embeddings, attention, blocks, heads, save and load."""
