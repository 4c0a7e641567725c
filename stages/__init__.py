"""What is done to a table. Every stage works on a five-row table without Ray."""
