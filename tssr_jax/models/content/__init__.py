"""Content encoders: what turns an item's text or image into a vector."""
