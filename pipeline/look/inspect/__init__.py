"""`stillhouse inspect PATH`: a run, a stage, a dataset, an export or one file, at any moment, in seconds."""
