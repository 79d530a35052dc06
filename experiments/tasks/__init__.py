"""What a command trains on, optimizes and reports, and the table of programs."""
