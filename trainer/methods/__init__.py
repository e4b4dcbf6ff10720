"""Define the methods, and name them in one table."""

from logitstore.trainer.methods.base import Method, Outputs
from logitstore.trainer.methods.table import METHODS, find_method, hyper_parameters, make_method

__all__ = ["METHODS", "Method", "Outputs", "find_method", "hyper_parameters", "make_method"]
