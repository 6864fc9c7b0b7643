"""Self-contained pages: the template, its style, and figures as SVG."""
