"""Verify that an artifact is whole and holds what a conversion of its source would write."""

from weightcast.converters.verify.result import Problem, Verification
from weightcast.converters.verify.verifier import verify

__all__ = ["Problem", "Verification", "verify"]
