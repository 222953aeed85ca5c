"""Stored tensors become a graph, a graph a plan, a plan files."""
