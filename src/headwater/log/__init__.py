"""The event log: one ordered sequence of records that everything else is derived from.

Reading: ``LmdbLog(path, readonly=True)`` gives blocks of records (``record``), checked byte by byte.
Writing: ``open_writer`` (``writer``) makes this process the one that writes; ``serve_writer`` (``socket``)
lets others in, through ``WriterClient`` or ``SyncWriterClient`` (``client``) with the same methods
(``commands``). Inside: ``staging`` turns a group of commands into one commit, ``dedup`` knows the last
event ids, ``identity`` who a user is, ``block`` how records stand on disk. ``memory`` is the log for
tests and evaluation.
"""
