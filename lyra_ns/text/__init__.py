"""Text in: prompts from a file or a language model, and pictures from prompts."""
