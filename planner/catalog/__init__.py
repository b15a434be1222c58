"""Facts about models, with their sources, and the reader that gives them out."""
