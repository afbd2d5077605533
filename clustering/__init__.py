"""Between data and training: teacher features -> k-means centers -> top-K labels."""
