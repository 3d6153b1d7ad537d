"""The command line, one module a command group.

A module of this room has a function ``register(app)`` that adds its commands, and stands in the list in
:mod:`headwater.cli.main`. Heavy imports go inside the command functions, so that ``--help`` stays quick.
"""
