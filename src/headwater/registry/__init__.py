"""Model bundles: one directory, one version, checked whole; promoted, swapped and rolled back whole."""
