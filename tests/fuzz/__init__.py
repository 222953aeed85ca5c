"""Hostile input for every reader: targets, what must hold for them, seeds and a fuzzer.

See docs/fuzzing.md; tests/test_fuzz_corpus.py replays the corpus in tests/data/fuzz.
"""
