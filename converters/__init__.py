"""Conversions, room by room: stored tensors become a graph, a graph a plan, a plan files.

docs/architecture.md draws the rooms and says which may import which.
"""
