"""Training: as-of rows in, model files for a bundle out."""
