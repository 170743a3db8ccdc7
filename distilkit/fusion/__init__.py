"""How a network computes in evaluation mode, in fewer passes over memory."""
