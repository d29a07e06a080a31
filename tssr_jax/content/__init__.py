"""Vectors that the content stream reads: of texts, pictures, categories, or the user's own."""
