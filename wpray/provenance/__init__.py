"""Origin of a result: versions, commit, host, and the files that decide outcomes."""
