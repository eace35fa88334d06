"""Copying files from addresses that expire into the bucket."""
