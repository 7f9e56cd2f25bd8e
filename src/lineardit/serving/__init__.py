"""Pictures over HTTP: a queue, one process per device, the calls that clients know, and a page."""
