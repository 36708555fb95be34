"""Every protocol of METHOD.md section 12: what a simulation says and how far to believe it."""
