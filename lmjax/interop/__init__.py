"""Models of other libraries: import and export."""
