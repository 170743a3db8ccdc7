"""Groups of students: how a backbone is cut, built, checked and computed."""
