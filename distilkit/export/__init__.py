"""From a trained network to a file that runs without PyTorch, and the proof that it computes the same."""
