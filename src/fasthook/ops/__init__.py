"""What one sees of a running server from outside: its numbers, its health, and the server that tells them."""
