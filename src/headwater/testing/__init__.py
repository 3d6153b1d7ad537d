"""Contract suites, slow obvious oracles and generators: prove a plug-in of your own with them.

A contract suite is a class of pytest tests; a new implementation's test inherits it and says how to
make one. This room needs the ``dev`` extra (pytest, hypothesis).
"""
