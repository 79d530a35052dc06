"""What a command trains on, optimises and reports, and the table of programs."""
