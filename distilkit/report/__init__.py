"""What people read of runs afterwards."""
