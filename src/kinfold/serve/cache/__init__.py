"""KV caches that take less room in long contexts: low-rank with a basis that follows the text, and by sentences."""
