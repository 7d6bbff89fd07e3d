"""The processes: they furnish the rooms, start them and answer signals."""
