"""One module per revision, which never changes once it is released."""
