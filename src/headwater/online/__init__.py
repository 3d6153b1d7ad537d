"""The online plane: the HTTP server, its processes and what keeps them running."""
