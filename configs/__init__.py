"""Configurations: `default.py` names every knob; the others change a few of them."""
