"""The networks: the two towers, their architectures, their weights in every layout."""
