"""State machines: frames and `now` in; frames, events and the next timer out. No I/O, clock or randomness."""
