"""A generated web shop, its shoppers and their sessions (synthetic)."""
