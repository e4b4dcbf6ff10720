"""The server's process: sockets, the HTTP protocol's limits, and its end in two steps."""
