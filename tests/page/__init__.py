"""The web page in a real browser, over real swarms."""
