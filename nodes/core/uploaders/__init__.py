"""Hosts that make pictures reachable for RunComfy: bytes in, URL out. One file a host."""
