"""Everything that proposes formulas to the search, one idea a file."""
