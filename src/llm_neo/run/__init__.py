"""One run: its folder, its record, its log, what its stages share and what it leaves."""
