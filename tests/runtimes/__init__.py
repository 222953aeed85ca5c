"""Directories in the versions of libraries that people have, each in its own environment."""
