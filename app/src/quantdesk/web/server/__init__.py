"""The HTTP server: uvicorn, with limits on what a client may do, and a way to stop unnoticed."""
