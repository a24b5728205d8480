"""Making and checking what is published."""
