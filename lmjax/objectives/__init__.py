"""What a run learns: samples, loss, validation and sample output of each objective."""
