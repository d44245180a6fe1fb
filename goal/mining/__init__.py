"""What LISM stands on: shards of pictures, the matcher, the pairs and their summary."""
