"""Run folders: what they hold, and how those of earlier versions are read."""
