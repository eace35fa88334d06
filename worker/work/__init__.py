"""The work on a claimed job: poll, copy, tell."""
