"""Objects in a bucket of Google's or Amazon's: their paths, and the requests that read, write, list and remove them."""
