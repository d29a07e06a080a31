"""Studies: the same training under several configurations and seeds, compared with statistics."""
