"""Run a model over text, layer by layer, to calibrate it and to measure what it loses.

All tokens go through one layer before the next is read, so that models run which no memory holds.
"""
