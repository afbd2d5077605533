"""k-means over features of any number: exact sums, any number of ranks, resumable to the bit."""
