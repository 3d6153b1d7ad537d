"""The nearline plane: what follows the log within milliseconds."""
