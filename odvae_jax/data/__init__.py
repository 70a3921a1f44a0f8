"""From video files to batches of uint8 clips."""

READ_TIMEOUT = 60.0
"""The seconds that one read may take, where nothing else is said."""
