"""Who a user is, by the word of an issuer."""
