"""What only the page to share needs."""
