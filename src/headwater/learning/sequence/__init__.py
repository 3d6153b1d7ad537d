"""The sequence two-tower: a causal transformer over what a user did, and a tower that makes a vector of an item."""
