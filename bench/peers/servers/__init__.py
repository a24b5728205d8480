"""One file a peer. Each is started as a process of its own, in the peers' virtualenv."""
