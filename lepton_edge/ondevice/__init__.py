"""What is copied to devices and runs there: standard library only, Python 3.9 or later, nothing of this package."""
