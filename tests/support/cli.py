"""`python -m tests.support.cli WORDS`: the command line of this tree, whatever is installed."""

from __future__ import annotations

from orchestrator.cli.app import main

if __name__ == "__main__":
    main()
