"""The frozen text tower of vision-language models. Imported only by runs whose prompts or classifier are text."""
