"""Proof of a user's identity: assertions signed by an issuer."""
