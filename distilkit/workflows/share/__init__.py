"""Models on the Hub, and their cards."""
