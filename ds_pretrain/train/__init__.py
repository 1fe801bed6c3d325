"""Training: the run from recipe to trained model, its loop, evaluation and export."""
