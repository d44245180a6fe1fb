"""What LISM stands on: shards of pictures over processes or a cluster, the matcher, the summary."""
