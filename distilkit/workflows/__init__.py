"""One file per command, read from top to bottom.

They return data, print nothing, and tell an observer how far they are.
"""
