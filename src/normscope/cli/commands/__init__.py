"""One file per command, each with a function `command`; heavy imports stay inside it, so that `--help` is quick."""
