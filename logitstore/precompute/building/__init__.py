"""The build: one pass over the images feeds all teachers and writes their snapshots.

This package knows the writer and the networks; it does not know the command line.
"""
