"""Devices, processes and catalogues that are cut over them; one body per device."""
