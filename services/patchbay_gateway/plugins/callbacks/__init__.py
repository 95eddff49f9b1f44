"""What edge and scheduler share of serving callbacks of plugins: who calls, HTTP, lines in the log."""
