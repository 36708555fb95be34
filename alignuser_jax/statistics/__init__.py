"""Statistics over users: plain arrays in, numbers out."""
