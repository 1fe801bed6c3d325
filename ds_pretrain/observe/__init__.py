"""What a run tells the outside: trackers of its numbers, and its progress on the terminal."""
