"""Reading a profile: torch's trace of some steps -> where their time went -> one page."""
