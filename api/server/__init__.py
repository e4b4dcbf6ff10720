"""The server's process: sockets, the HTTP protocol with its limits, and the end in two steps."""
