"""Data: token files, the shuffled stream, batches, and the preparation of text. Importing it loads no torch."""
