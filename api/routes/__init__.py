"""One file per kind of answer: listings, rows, objects.

A route looks names up, asks a reader and answers; it opens no file by a client's name.
"""
