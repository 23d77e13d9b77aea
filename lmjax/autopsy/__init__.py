"""What a spike was: a report of each, written before the run goes on."""
