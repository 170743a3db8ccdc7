"""A recipe becomes something that trains."""
