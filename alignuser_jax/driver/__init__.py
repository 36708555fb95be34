"""Run many coroutines that ask questions, and answer what they ask."""
