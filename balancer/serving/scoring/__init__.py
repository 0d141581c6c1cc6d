"""Score transactions with a trained run: parsing, history from the database, states, the model in service."""
