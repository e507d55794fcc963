"""ZeroMQ sockets behind one small interface; it moves frames and knows nothing of what they mean."""
