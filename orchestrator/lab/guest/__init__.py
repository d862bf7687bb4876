"""Files that run inside a lab guest: shipped as they are, standard library and busybox only."""
