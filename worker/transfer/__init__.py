"""Moving files: from an address that expires into the bucket."""
