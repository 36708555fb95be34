"""Download published logs and check what came."""
