"""Headwater: a real-time recommendation system.

Read the packages in the order in which data flows:

``schema`` → ``log`` (the truth) → ``nearline`` folds it with ``features`` into state →
``retrieval`` finds candidates → ``ranking`` orders them → ``policy`` decides what may be shown →
``serving`` joins these stages into one request pipeline → ``online`` answers over HTTP.
``offline`` imports, trains (``learning``), evaluates (``evaluation``) and publishes to ``registry``.
``simulator`` makes visitors, ``client`` talks to a server, ``cli`` is the command line,
``testing`` holds contract suites and slow oracles.
"""

__version__ = "0.1.0"
