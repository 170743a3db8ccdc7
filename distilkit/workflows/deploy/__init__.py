"""From a run to a file that predicts."""
