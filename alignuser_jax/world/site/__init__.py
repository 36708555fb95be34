"""The recommendation site: pages of items, search, navigation."""
