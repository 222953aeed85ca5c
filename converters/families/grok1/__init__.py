"""grok1."""
