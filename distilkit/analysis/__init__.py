"""What is measured of a network: its errors, its diversity, its cost, the flatness of its optimum."""
