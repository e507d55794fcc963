"""Keys: what they are, where they lie, whom they let in. Imported by the node; knows nothing of sockets."""
