"""Texts and pictures to the vectors that the content stream reads: frozen or trained."""
