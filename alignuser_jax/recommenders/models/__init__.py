"""The recommenders that this project trains itself."""
