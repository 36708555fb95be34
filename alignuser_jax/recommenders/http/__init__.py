"""Recommenders behind HTTP: the protocol, the client and the server."""
