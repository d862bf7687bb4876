"""kexec-fleet's deciding side: inventory, playbook, rollout, journal, lab and command line."""
