"""Tokenisers: text, images and sound to discrete tokens and back."""
