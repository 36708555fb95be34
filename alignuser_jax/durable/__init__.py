"""Files that survive a kill: framed records, whole files, the journal of answers."""
