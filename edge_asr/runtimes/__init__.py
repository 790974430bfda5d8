"""Who transcribes: one interface, a file for each."""
