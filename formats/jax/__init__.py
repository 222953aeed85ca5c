"""JAX checkpoints of pickle shards, read without running a pickle.

`shards` finds the files of a directory, `unpickler` follows the opcodes that such files have and
refuses all others, `arrays` describes what they hold, `writer` makes such shards.
"""
