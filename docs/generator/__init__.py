"""Parts and pages of the documentation that the code determines."""
