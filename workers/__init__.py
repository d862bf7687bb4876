"""kexec-fleet's acting side: reaches hosts over SSH and drives one host one step at a time."""
