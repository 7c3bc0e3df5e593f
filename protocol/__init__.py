"""What crosses the wire between peers, and nothing that computes.

Opens sockets in `transport` alone, files in `files` and `keyfile` alone, and knows no torch and no model's code.
"""
