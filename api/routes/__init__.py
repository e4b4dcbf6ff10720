"""One file per kind of answer: what stores there are, their rows, their objects.

A route looks up, asks a reader and answers.
"""
