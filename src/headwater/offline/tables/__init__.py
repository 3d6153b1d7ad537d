"""Tables that are computed elsewhere: into the log when their rows are due, and beside training rows for the past.

``parts`` (which files) → ``read`` (checked rows in the order of time) → ``load`` (to the writer, each row once) and
``follow`` (again and again); ``history`` (for rows from before a table was first loaded).
"""
