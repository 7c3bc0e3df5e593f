"""The ways in which clients ask: each makes an `Ask` of its own fields, and its own words of what is said of it."""
