"""Check recommenders: the contract and held-out hits."""
