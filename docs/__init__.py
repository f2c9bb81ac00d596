"""Pages that commands write, each named in the first line of its page, and what writes those of no other package."""
