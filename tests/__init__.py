"""The tests. Helpers are imported by their whole names: `from tests.support import Golden`."""
