"""Check recommenders: the contract, held-out hits and held-out rankings."""
