"""Runtime loader: shards and labels in, packed batches out."""
