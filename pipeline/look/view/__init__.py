"""`stillhouse view`: a page over the files of a run, served on this machine to whoever started it."""
