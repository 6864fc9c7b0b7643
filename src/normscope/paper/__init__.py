"""The paper: its exhibits, its published numbers, and the page of a reproduction."""
