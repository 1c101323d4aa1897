"""A run's records while it trains: watched for what cannot be written, and replayed to the page of a continued run; and
how far it has come in a log that grows."""
