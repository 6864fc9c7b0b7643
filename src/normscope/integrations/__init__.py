"""Watches for the training loops of other libraries; each is imported only when used, and is an extra of its own."""
