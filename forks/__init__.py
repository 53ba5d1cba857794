"""One idea changed, one file each: what a fork of this repository looks like."""
