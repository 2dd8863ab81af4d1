"""Reading `config.json`, such that nothing in it is overlooked."""
