"""What `lineardit bench` measures."""
