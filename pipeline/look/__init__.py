"""Looking at a run, a dataset or a source: what it is, how far it is, what it would cost. Nothing here needs Ray."""
