"""GGUF files of llama.cpp: opened with bounds, and imported as a Hugging Face directory."""
