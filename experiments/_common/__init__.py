"""Settings, flags and terminal output that the commands share."""
