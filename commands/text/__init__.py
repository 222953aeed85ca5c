"""Lines that commands print, made of results."""
