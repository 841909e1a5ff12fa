"""Frameworks that run the model. Nothing outside this folder knows them."""
