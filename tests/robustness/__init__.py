"""Tries to break the library with damaged files, and with what happens to long runs."""
