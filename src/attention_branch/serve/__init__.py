"""`abn serve`: a page to look at predictions, question and correct them, and an HTTP API for programs."""
