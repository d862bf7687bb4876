"""Pure rules: no clock, no I/O, no framework. Time, randomness and ids come in as arguments."""
