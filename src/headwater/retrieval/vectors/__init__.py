"""Vector indexes: the items whose vectors have the largest inner product with a query."""
