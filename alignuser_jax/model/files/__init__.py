"""Model weights and configurations on disk: Hugging Face, PEFT and merged folders."""
