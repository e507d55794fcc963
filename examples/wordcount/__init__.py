"""Map and reduce over the text of Python's own library, with workers that may die."""
