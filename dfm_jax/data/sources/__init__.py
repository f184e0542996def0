"""Where text comes from: local files, datasets of the Hugging Face hub, Python's own documentation."""
