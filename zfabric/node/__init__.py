"""The driver (the only reader of the clock) and the asyncio API."""
