"""The Accelerate loop, its clock, and what it writes down so that nothing is lost."""
