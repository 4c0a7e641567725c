"""What filters and stages ask of a text: when two are equal, how alike they are, whether one repeats itself."""
