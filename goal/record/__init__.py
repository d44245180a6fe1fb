"""What the record stands on: where a result came from, and a journal that outlives servers."""
