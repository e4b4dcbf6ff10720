"""The build: one pass over the images feeds all teachers and writes their snapshots.

Knows the writer and the networks, not the command line.
"""
