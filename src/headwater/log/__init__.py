"""The event log: one ordered sequence of records that everything else is derived from."""
